"""The locally available models, bundled and in the hub's cache, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from piti.checkpoints.folder import (
    CONDITION_FILE,
    INDEX_FILE,
    SHARED_UPSAMPLER,
    ModelError,
    bundled_models,
    find_model,
    read_json,
)
from piti.checkpoints.lora import ADAPTER_CONFIG


@dataclass(frozen=True)
class ModelEntry:
    """A locally available model."""

    name: str
    where: str
    folder: Path

    def row(self) -> dict[str, str]:
        """As a row of a table. Raises ModelError where a file is missing."""
        size = sum(p.stat().st_size for p in self.folder.rglob("*.safetensors"))
        return {
            "model": self.name,
            "condition": str(read_json(self.folder, CONDITION_FILE).get("kind", "?")),
            "image": self._image(),
            "weights": ", ".join([f"{size / 1e6:.1f} MB", *(f"needs {name}" for name in self._needed())]),
            "where": self.where,
        }

    def _needed(self) -> list[str]:
        """Other models whose weights are needed: the base model of its adapters, and that of its upsampler."""
        adapter = self.folder / "base" / ADAPTER_CONFIG
        names = [read_json(adapter.parent, ADAPTER_CONFIG).get("prior", "?")] if adapter.is_file() else []
        shared = read_json(self.folder, INDEX_FILE).get(SHARED_UPSAMPLER)
        return list(dict.fromkeys([*names, *([shared] if shared else [])]))

    def _image(self) -> str:
        """The size of its images: "64 -> 256 px" for a cascade and an upsampler alone, "64 -> ? px" if its shared
        upsampler is not available locally, since nothing is downloaded."""
        index = read_json(self.folder, INDEX_FILE)
        configs = [read_json(self.folder / part, "config.json") for part in ("base", "upsampler") if part in index]
        if "upsampler" not in index and index.get(SHARED_UPSAMPLER):
            try:
                lender = find_model(index[SHARED_UPSAMPLER], local_files_only=True)
                configs.append(read_json(lender / "upsampler", "config.json"))
            except ModelError:
                configs.append({})
        sides = [config.get("image_size", "?") for config in configs]
        if "base" in index:
            return f"{' -> '.join(map(str, sides))} px"
        return f"{configs[0].get('low_res', '?')} -> {sides[0]} px, upsampler alone" if configs else "?"


def list_models() -> list[ModelEntry]:
    """Bundled models, then those in the hub's cache, each in the revision that its id refers to."""
    found = [ModelEntry(name, "bundled", folder) for name, folder in bundled_models().items()]
    return found + [ModelEntry(name, "hub cache", folder) for name, folder in _cached_models()]


def _cached_models() -> Iterator[tuple[str, Path]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repo: repo.repo_id):
        usual_first = sorted(repository.revisions, key=lambda one: ("main" not in one.refs, -one.last_modified))
        folders = (Path(revision.snapshot_path) for revision in usual_first)
        whole = next((folder for folder in folders if _is_whole(folder)), None)
        if whole is not None:
            yield repository.repo_id, whole


def _is_whole(folder: Path) -> bool:
    """Whether a folder contains a model of this package with all configurations that listing needs."""
    try:
        index = read_json(folder, INDEX_FILE)
    except ModelError:
        return False
    parts = [part for part in ("base", "upsampler") if part in index]
    needed = [CONDITION_FILE, *(f"{part}/config.json" for part in parts)]
    return index.get("_class_name") == "PITIPipeline" and bool(parts) and all((folder / n).is_file() for n in needed)
