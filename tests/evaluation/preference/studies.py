"""Small studies and hand-made votes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from piti.core.progress import OnProgress
from piti.evaluation.preference.study import Compared, Study, StudyOptions, write_study
from piti.evaluation.preference.votes import Key, PairKey, read_key


def picture(path: Path, colour: Sequence[int], size: tuple[int, int] = (16, 16), seed: int = 0) -> None:
    """A noisy picture of about one colour, with metadata that tells where it is from."""
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    told = PngImagePlugin.PngInfo()
    told.add_text("piti:model", f"model-of-{path.parent.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path, pnginfo=told)


def folders(
    root: Path, count: int = 6, size_a: tuple[int, int] = (16, 16), size_b: tuple[int, int] = (16, 16)
) -> tuple[Path, Path]:
    """The reddish pictures of A and the bluish ones of B, each with a contact sheet."""
    a, b = root / "first-model", root / "second-model"
    for k in range(count):
        picture(a / f"scene-{k}_0.png", (200, 60, 60), size_a, k)
        picture(b / f"scene-{k}_0.png", (60, 60, 200), size_b, 100 + k)
    picture(a / "sheet.png", (0, 0, 0))
    picture(b / "sheet.png", (0, 0, 0))
    return a, b


def study(root: Path, count: int = 6, on_step: OnProgress | None = None, **options: Any) -> tuple[Study, Key]:
    """A study of `folders` in `root`."""
    compared = Compared(*folders(root, count))
    written = write_study(compared, root / "study.html", StudyOptions(**options), on_step=on_step)
    return written, read_key(written.key)


def page_data(page: Path) -> dict[str, Any]:
    """What the page's script reads."""
    text = page.read_text(encoding="utf-8").partition('<script type="application/json" id="study">')[2]
    return json.loads(text.partition("</script>")[0])


Choose = Callable[[int, PairKey], str | None]


def votes_of(key: Key, rater: int, choose: Choose, repeats: Sequence[str | None] = ()) -> dict[str, Any]:
    """A votes file's values: "a", "b" or None for each pair, left out for "-"; then for the first pairs once more."""

    def vote(pair: PairKey, choice: str | None, repeat: bool, flip: bool) -> dict[str, Any]:
        left, right = (pair.b, pair.a) if flip != repeat else (pair.a, pair.b)
        chosen = {"a": pair.a, "b": pair.b, None: None}[choice]
        return {"pair": pair.id, "left": left, "right": right, "chosen": chosen, "repeat": repeat, "seconds": 2.5}

    choices = [(k, pair, choose(k, pair)) for k, pair in enumerate(key.pairs)]
    votes = [vote(pair, choice, False, bool(k % 2)) for k, pair, choice in choices if choice != "-"]
    votes += [vote(key.pairs[k], choice, True, bool(k % 2)) for k, choice in enumerate(repeats)]
    return {"format": "piti votes 1", "study": key.study, "rater": f"{rater:016x}", "name": "", "votes": votes}


def save(folder: Path, number: int, values: dict[str, Any]) -> Path:
    path = folder / f"votes-{number}.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
