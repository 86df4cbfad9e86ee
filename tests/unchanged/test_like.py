"""`piti translate --like` recreates PNGs of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unchanged.recordings import WRITTEN, assert_alike, fingerprint, weights_of, writing
from tests.unchanged.tiny import mask_file, piti, street_file

LINES = {
    "cascade": ["--num", 3, "--batch", 3, "--seed", 7, "--guidance", 1.5],
    "text": ["--num", 2, "--steps", 2, "--sampler", "ddim"],
    "street": ["--num", 2, "--steps", 1, "--upsampler-steps", 1, "--size", 16, "--seed", 2],
}
FACTS = WRITTEN / "facts.json"


@pytest.mark.parametrize("name", LINES)
def test_like(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = weights_of(["street"]) if name == "street" else ""
    if name != "street":
        Path(name).symlink_to(models / name)
    if writing():
        write(name, weights)
    facts = json.loads(FACTS.read_text(encoding="utf-8"))[name]
    if facts["weights"] != weights:
        pytest.skip(f"{name}: weights changed since recorded; see tests/unchanged/__init__.py")
    piti("translate", "--like", WRITTEN / f"{name}.png", "--out", "out", "--device", "cpu")
    (made,) = (path for path in Path("out").glob("*.png") if path.name != "sheet.png")
    with Image.open(made) as one, Image.open(WRITTEN / f"{name}.png") as other:
        pixels, wanted = np.asarray(one), np.asarray(other)
        others = ("piti:version", "piti:made_on")
        said, told = ({k: v for k, v in image.text.items() if k not in others} for image in (one, other))  # type: ignore[attr-defined]
    assert pixels.shape == wanted.shape
    assert_alike(name, {"pixels": pixels}, {"pixels": wanted})
    assert said == told
    if facts["fingerprint"] == fingerprint():
        assert np.array_equal(pixels, wanted), f"{name}: pixels differ in their last bits"


def write(name: str, weights: str) -> None:
    """Make the file that stands for one of an earlier version; the last of several."""
    inputs = {"cascade": mask_file, "street": street_file}
    given = [inputs[name](Path("given.png"))] if name in inputs else ["--text", "the sea, and hills"]
    model = name if name == "street" else f"./{name}"
    piti("translate", *given, *LINES[name], "--model", model, "--out", "first", "--device", "cpu")
    *_, last = sorted(path for path in Path("first").glob("*.png") if path.name != "sheet.png")
    WRITTEN.mkdir(exist_ok=True)
    (WRITTEN / f"{name}.png").write_bytes(last.read_bytes())
    facts = json.loads(FACTS.read_text(encoding="utf-8")) if FACTS.is_file() else {}
    facts[name] = {"weights": weights, "fingerprint": fingerprint()}
    FACTS.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
