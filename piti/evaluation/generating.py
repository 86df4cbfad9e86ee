"""A model's images of a split, made as `piti translate` makes them: resumable, and shared by several processes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from piti.conditions import Condition, NoCondition, SeveralCondition
from piti.core.distributed import Ranks, together
from piti.core.errors import option
from piti.core.images import PREFIX
from piti.core.system import link
from piti.core.walk import list_images
from piti.data.pairs import FolderSpec, Pair, PairList, key_hash
from piti.evaluation.pairing import PairingError, photographs_of
from piti.generation.generate import noise_device
from piti.generation.kept import difference
from piti.generation.metadata import MADE_ON, made_on, made_with, model_name
from piti.generation.options import SHEET, GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.computing import TORCH, Computing
from piti.pipelines.pipeline import PITIPipeline

_SHOWN = 12  # digits of a hash in an image's metadata


@dataclass(frozen=True)
class Split:
    """What a model is to be judged on."""

    root: Path
    name: str = "val"
    conditions: tuple[str, ...] = ()
    """The conditions' folder in `root`; for several parts `PART=FOLDER` each. None: the usual ones of their kinds."""
    limit: int | None = None
    """Only this many pairs, those whose keys' hashes are lowest; the photographs stay all."""

    def pairs(self, condition: Condition) -> list[Pair]:
        """The pairs, sorted by key. Raises DataError and PairingError."""
        if isinstance(condition, NoCondition):
            raise PairingError("this model takes no condition, so there is nothing to translate; judge its base")
        spec = FolderSpec(root=self.root, conditions=self._folders(condition))
        listing = PairList(spec, condition, self.name)
        pairs = listing.pairs()
        listing.problems.raise_if_any(self.root)
        if self.limit is not None:
            pairs = sorted(sorted(pairs, key=lambda pair: key_hash(pair.key))[: self.limit], key=lambda pair: pair.key)
        _check_stems(pairs)
        return pairs

    def _folders(self, condition: Condition) -> str | dict[str, str]:
        """The folder of the conditions, or of each part. Raises PairingError where it is not known."""
        named = dict(text.split("=", 1) for text in self.conditions if "=" in text)
        plain = [text for text in self.conditions if "=" not in text]
        if not isinstance(condition, SeveralCondition):
            if named or len(plain) > 1:
                raise PairingError(
                    "this model reads one",
                    remedy="name one folder",
                    option="conditions",
                    value=" ".join(self.conditions),
                )
            return plain[0] if plain else _usual(condition.kind, condition)
        if plain or named.keys() - condition.parts.keys():
            parts = ", ".join(condition.parts)
            raise PairingError(
                "this model reads several parts", remedy=f"give PART=FOLDER for each of {parts}", option="conditions"
            )
        return {name: named.get(name) or _usual(name, part) for name, part in condition.parts.items()}


def _usual(name: str, condition: Condition) -> str:
    if condition.usual_folder is None:
        raise PairingError(f"where the data has its {name} is not known", remedy=f"say it with {option('conditions')}")
    return condition.usual_folder


def _check_stems(pairs: Sequence[Pair]) -> None:
    """Images are named after their conditions' stems, which must differ. Raises PairingError."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        stem = Path(pair.key).name
        if stem in first:
            raise PairingError(f"{first[stem].key} and {pair.key}: their images would have the same names; rename one")
        first[stem] = pair


@dataclass(frozen=True)
class GeneratedSplit:
    """A model's images of a split, all of them."""

    images: list[Path]
    photographs: list[Path]
    """Of the whole split."""
    conditions: dict[str, tuple[Condition, dict[str, Path]]]
    """For each part of the condition its files by stem."""
    facts: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class JudgedModel:
    """The model whose images are judged."""

    name: str
    upsampler: str | None = None
    """The model whose upsampler it takes."""
    computing: Computing = TORCH

    def opened(self, base_only: bool) -> tuple[PITIPipeline, str]:
        """Its pipeline, on its device, and the hash of its weights. Raises ModelError, and UserError for what cannot be
        computed here."""
        self.computing.check()
        pipeline = PITIPipeline.from_pretrained(self.name, upsampler=self.upsampler, base_only=base_only)
        digest = weights_sha256(pipeline)  # of what was loaded, whatever it is computed in
        self.computing.applied(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline, digest


def generate_split(
    model: JudgedModel,
    split: Split,
    out: Path,
    options: GenerationOptions,
    ranks: Ranks | None = None,
    on_step: Callable[[int, int], None] | None = None,
    num_given: bool = True,
) -> GeneratedSplit:
    """Translate a split's conditions into `out`; images that are there already are kept.

    Every process of `ranks` must call this. on_step: (denoising steps done, in all). num_given: whether `options.num`
    is what a person wants, else a model without noise makes one image a condition. Raises PairingError if `out` holds
    images made in another way or by other weights, and if several images are wanted of such a model.
    """
    ranks = ranks or Ranks()
    with together():
        pipeline, digest = model.opened(options.sampling.base_only)
        options, notes = _of_one_image(pipeline, options, num_given)
        name = model_name(model.name, model.upsampler, digest[:_SHOWN])
        pairs = split.pairs(pipeline.condition)
        where = noise_device(pipeline, options.noise_on)
        made = made_with(options.sampling.resolve(pipeline), options.seed, name, where)
        if ranks.main:
            _check_made(out, made | {MADE_ON: made_on(pipeline)})
    with _given(pipeline.condition, pairs) as (inputs, parts):
        report = translate_files(
            pipeline, TranslationFiles(inputs, out, parts=parts), options, name, on_step=on_step, ranks=ranks
        )
    facts = {
        "name": model.name,
        **({"upsampler": model.upsampler} if model.upsampler else {}),
        "weights_sha256": digest,
        "condition": pipeline.condition.kind,
        **_split_facts(split),
        "samples": options.num,
        "made_on": made_on(pipeline),
        "sampling": {key.removeprefix(PREFIX): value for key, value in made.items() if key != f"{PREFIX}model"},
    }
    images, given = sorted([*report.made, *report.kept]), _by_part(pipeline.condition, pairs)
    return GeneratedSplit(images, photographs_of(split.root, split.name), given, facts, [*notes, *report.notes])


def _split_facts(split: Split) -> dict[str, Any]:
    limit = {} if split.limit is None else {"limit": split.limit}
    return {"data": str(split.root), "split": split.name, **limit}


def _of_one_image(
    pipeline: PITIPipeline, options: GenerationOptions, num_given: bool
) -> tuple[GenerationOptions, list[str]]:
    """One image a condition, and a note, where every sample would be the same. Raises PairingError."""
    if options.num == 1 or pipeline.draws_noise(options.sampling.base_only):
        return options, []
    why = "this model reads no noise, so all images of one condition would be the same"
    if num_given:
        raise PairingError(
            f"{why}, and would count as several",
            remedy=f"leave {option('num')} out, or give 1",
            option="num",
            value=options.num,
        )
    return replace(options, num=1), [f"one image a condition was made: {why}"]


def weights_sha256(pipeline: PITIPipeline) -> str:
    """The hash of a pipeline's networks, by their tensors' names and bytes, wherever they were loaded from."""
    digest = hashlib.sha256()
    for part in (pipeline.base, pipeline.upsampler):
        for key, value in sorted(part.state_dict().items()) if part is not None else []:
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return digest.hexdigest()


def _check_made(out: Path, wanted: Mapping[str, str]) -> None:
    """Raises PairingError if images in `out` were not made as is `wanted` by their metadata, see `difference`."""
    existing = [path for path in (list_images(out) if out.is_dir() else []) if path.name != SHEET]
    for path in existing:
        odd = difference(path, wanted)
        if odd:
            raise PairingError(
                f"is there already, {odd}",
                remedy=(
                    f"give another {option('out')}, or judge what is there: piti evaluate images {out} "
                    f"{option('real')} …"
                ),
                source=path,
            )


@contextmanager
def _given(condition: Condition, pairs: Sequence[Pair]) -> Iterator[tuple[list[Path], dict[str, Path]]]:
    """A split's conditions as `translate_files` takes them: files, or for several parts a folder of links for each."""
    files = _by_part(condition, pairs)
    if not isinstance(condition, SeveralCondition):
        yield [path for _, by_stem in files.values() for path in by_stem.values()], {}
        return
    with tempfile.TemporaryDirectory(prefix="piti-") as folder:
        parts = {part: Path(folder) / part for part in files}
        for part, (_, by_stem) in files.items():
            parts[part].mkdir()
            for path in by_stem.values():
                link(path.resolve(), parts[part] / path.name)
        yield [], parts


def _by_part(condition: Condition, pairs: Sequence[Pair]) -> dict[str, tuple[Condition, dict[str, Path]]]:
    """Each part's condition, and its files by stem."""
    files: dict[str, dict[str, Path]] = {part: {} for part in condition.named_parts()}
    for pair in pairs:
        given = pair.condition if isinstance(pair.condition, dict) else {condition.kind: pair.condition}
        for part, path in given.items():
            if isinstance(path, Path):
                files[part][path.stem] = path
    named = condition.named_parts()
    return {part: (_reader(kind, list(files[part].values())), files[part]) for part, kind in named.items()}


def _reader(condition: Condition, files: Sequence[Path]) -> Condition:
    """What reads these files, of one folder: see `piti.generation.readers`. Raises ConditionError."""
    return condition.beside(files[0]).settled(files)[0] if files else condition
