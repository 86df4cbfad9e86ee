"""Existing images are kept if they match the request, also if their PNGs omit a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from piti.core.files import OutputError
from piti.core.images import png_text, save_png
from piti.generation.kept import difference
from piti.generation.options import GenerationOptions
from piti.generation.plan import planned
from piti.generation.recreate import read_record
from piti.generation.sources import TranslationFiles
from piti.generation.translate import Report, translate_files
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask, tiny_pipeline


def translated(pipeline: PITIPipeline, root: Path, **options: Any) -> Report:
    """The image out/m_0.png of a mask, made or kept."""
    mask(1).save(root / "m.png")
    files = TranslationFiles([root / "m.png"], root / "out")
    return translate_files(pipeline, files, GenerationOptions.from_flat(steps=1, **options), "tiny")


@pytest.mark.parametrize(("before", "now"), [(True, False), (False, True)])
def test_images_of_truncated_small_images_are_not_kept_for_rounded_ones(
    before: bool, now: bool, tmp_path: Path
) -> None:
    pipeline, fast = tiny_cascade(), {"upsampler_steps": 1}
    translated(pipeline, tmp_path, upsampler_truncates=before, **fast)
    assert translated(pipeline, tmp_path, upsampler_truncates=before, **fast).kept
    said = rf"already exists, generated with upsampler_truncates = {before}, but {now} is requested; add overwrite"
    with pytest.raises(OutputError, match=said):
        translated(pipeline, tmp_path, upsampler_truncates=now, **fast)


def test_a_key_that_is_written_only_sometimes_is_compared_both_ways(tmp_path: Path) -> None:
    translated(tiny_pipeline(), tmp_path)
    file = tmp_path / "out/m_0.png"
    plain = png_text(file)
    assert not {"piti:square", "piti:noise_on", "piti:upsampler_truncates"} & plain.keys()
    for key, usual, other in (("square", "False", "True"), ("noise_on", "cpu", "cuda")):
        assert difference(file, plain | {f"piti:{key}": usual}) == ""
        said = difference(file, plain | {f"piti:{key}": other})
        assert said == f"generated with {key} = {usual}, but {other} is requested"
    squared = {**plain, "piti:square": "True"}
    save_png(Image.open(file), file, squared)
    assert difference(file, plain) == "generated with square = True, but False is requested"
    assert difference(file, squared) == ""


def test_a_size_that_is_not_said_is_told_by_the_image(tmp_path: Path) -> None:
    translated(tiny_pipeline(), tmp_path)
    assert translated(tiny_pipeline(), tmp_path, size=16).kept  # the model's own
    with pytest.raises(OutputError, match="already exists with 16 x 16, but 32 x 32 is requested"):
        translated(tiny_pipeline(), tmp_path, size=32)


@pytest.mark.parametrize("same", range(3))
def test_conditions_beyond_the_sheet_are_compared_with_that_of_the_image_to_make_again(
    same: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of other conditions come of it only if all are others."""
    monkeypatch.setattr("piti.generation.plan.SHEET_ROWS", 1)
    pipeline = tiny_pipeline()
    translated(pipeline, tmp_path)
    record = read_record(tmp_path / "out/m_0.png")
    (tmp_path / "masks").mkdir()
    for k in range(3):
        mask(1 if k == same else 7 + k).save(tmp_path / f"masks/{k}.png")

    def other(folder: Path) -> bool:
        files = TranslationFiles([folder], tmp_path / "new", like=record)
        notes = planned(pipeline, files, record.options(GenerationOptions())).notes
        return any("differs from the condition of" in note for note in notes)

    assert not other(tmp_path / "masks")
    (tmp_path / f"masks/{same}.png").unlink()
    assert other(tmp_path / "masks")


@pytest.mark.parametrize("kept", [0, 200, -4])
def test_an_image_that_breaks_off_is_named_and_not_kept(kept: int, tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    translated(pipeline, tmp_path)
    file = tmp_path / "out/m_0.png"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(OutputError, match=r"m_0\.png: already exists, but is truncated or not an image; remove it"):
        translated(pipeline, tmp_path)
    file.unlink()
    assert translated(pipeline, tmp_path).made == [file]
