"""Uploading a model's folder to the hub, and its model card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict

from piti import __version__
from piti.checkpoints.folder import CONDITION_FILE, INDEX_FILE, SHARED_UPSAMPLER, WEIGHTS_STEM, only_variant, read_json
from piti.checkpoints.shards import kinds_of
from piti.conditions import SeveralCondition
from piti.conditions.composite import part_configs

CARD_FILE = "README.md"


class UploadKeywords(TypedDict, total=False):
    """Destination of an upload."""

    repo_id: str
    commit_message: str | None
    private: bool | None
    token: str | None
    create_pr: bool


def upload_model(
    folder: Path,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a model's folder, creating the repository if necessary. Returns the commit's URL.

    An existing card in the folder or the repository is kept; else `model_card` is written. Raises the hub's errors.
    """
    from huggingface_hub import create_repo, file_exists, upload_folder

    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if not (folder / CARD_FILE).is_file() and not file_exists(repo_id, CARD_FILE, token=token):
        (folder / CARD_FILE).write_text(model_card(folder, repo_id), encoding="utf-8")
    return str(
        upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            commit_message=commit_message or "Upload PITIPipeline",
            create_pr=create_pr,
        )
    )


def model_card(folder: Path, name: str) -> str:
    """A model card in Markdown. name: the name to load the model by."""
    index, condition = read_json(folder, INDEX_FILE), read_json(folder, CONDITION_FILE)
    kind = condition["kind"]
    task = "text-to-image" if kind == "text" else "image-to-image"
    variant = only_variant(folder / "base")
    given = f'"{name}"' if variant is None else f'"{name}", variant="{variant}"'
    tags = "\n".join(f"- {tag}" for tag in ("diffusers", "piti", kind))
    return f"""---
library_name: piti
pipeline_tag: {task}
tags:
{tags}
---

# {name}

A model of `piti` {__version__}, an implementation of *Pretraining is All You Need for Image-to-Image Translation*
(PITI, arXiv 2205.12952): {"texts" if kind == "text" else f"conditions of the kind `{kind}`"} in, images out.

## What is in it

| part | what it is | parameters | weights |
|---|---|---|---|
{_rows(folder, index)}

{_reads(condition)}

{_sampling(index)}

## How to use it

```python
from piti import PITIPipeline

pipe = PITIPipeline.from_pretrained({given})
images = pipe({_example(condition)}, num_images_per_prompt=4).images
```

## What this card does not say

It was written from the model's files. What the model was trained on, its licence, and where it fails are for whoever
publishes it to add.
"""


def _example(condition: dict[str, Any]) -> str:
    """An example input, as Python code."""
    if condition["kind"] == "text":
        return '"a street with trees"'
    if condition["kind"] == SeveralCondition.kind:
        parts = part_configs(condition, CONDITION_FILE)
        return "{" + ", ".join(f'"{part}": "{part.upper()}.png"' for part in parts) + "}"
    return '"CONDITION.png"'


def _rows(folder: Path, index: dict[str, Any]) -> str:
    rows = []
    for part in ("base", "upsampler"):
        if part in index:
            config = read_json(folder / part, "config.json")
            small = f"{config['low_res']} to " if config.get("low_res") else ""
            what = f"`{config['_class_name']}`, {small}{config['image_size']} px"
            rows.append(f"| `{part}` | {what} | {_weights(folder / part)} |")
    if SHARED_UPSAMPLER in index:
        rows.append(f"| `upsampler` | that of the model `{index[SHARED_UPSAMPLER]}` | | not in it |")
    return "\n".join(rows)


def _weights(folder: Path) -> str:
    """Parameters and dtypes of a network's weights, as cells of a table; the file names if not safetensors."""
    paths = sorted(folder.glob(f"{WEIGHTS_STEM}*.safetensors"))
    held = [named for path in paths for named in kinds_of(path).items()]
    count = sum(math.prod(shape) for _, shape in dict(held).values())  # variants contain the same tensors
    dtypes = sorted({dtype for _, (dtype, _) in held})
    if not paths:
        return f" | {', '.join(path.name for path in sorted(folder.glob(f'{WEIGHTS_STEM}*.bin')))}"
    return f"{count / 1e6:.1f} M | {', '.join(dtypes)}"


def _reads(condition: dict[str, Any]) -> str:
    classes = condition.get("classes")
    if not isinstance(classes, dict):
        return f"It reads what `{CONDITION_FILE}` says."
    named = ", ".join(f"{number} {name}" for number, name in zip(classes["ids"], classes["names"], strict=True))
    return f"Its masks hold these classes by their values, or in the colours of `{CONDITION_FILE}`: {named}."


def _sampling(index: dict[str, Any]) -> str:
    defaults = index.get("defaults") or {}
    said = ", ".join(f"`{key}` {value}" for key, value in defaults.items())
    return f"Sampled by itself with {said}." if said else "Sampled by itself with the package's general settings."
