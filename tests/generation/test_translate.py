"""`piti translate` and `piti models`: written files, kept files, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import TextCondition
from piti.core.files import OutputError
from piti.core.images import image_size, png_text, save_png
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.generation.options import GenerationOptions
from piti.generation.plan import SHEET_SIDE, planned
from piti.generation.sources import TranslationError, TranslationFiles
from piti.generation.translate import Report, translate_files
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from piti.prepare.packable import PackJob
from piti.prepare.shards import pack_shards
from tests.conftest import TINY_MODEL
from tests.pipelines.test_pipeline import mask, tiny_pipeline


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    folder = tmp_path / "masks"
    folder.mkdir()
    for k in range(3):
        mask(k).save(folder / f"m{k}.png")
    return folder


def pixels(folder: Path) -> dict[str, bytes]:
    return {p.name: np.asarray(Image.open(p)).tobytes() for p in sorted(folder.glob("m*.png"))}


def test_one_image_into_one_file(masks: Path, tmp_path: Path) -> None:
    pipeline, out = tiny_pipeline(), tmp_path / "new/street.png"

    def translated(mask: Path, out: Path, overwrite: bool = False, num: int = 1) -> Report:
        files = TranslationFiles([mask], out, overwrite=overwrite)
        return translate_files(pipeline, files, GenerationOptions.from_flat(num=num, steps=2), "tiny")

    report = translated(masks / "m0.png", out)
    assert (report.made, report.sheet) == ([out], None)
    assert [path.name for path in out.parent.iterdir()] == ["street.png"]
    translated(masks / "m0.png", tmp_path / "folder")
    first, pixels_first = out.read_bytes(), np.asarray(Image.open(out))
    assert (pixels_first == np.asarray(Image.open(tmp_path / "folder/m0_0.png"))).all()
    assert translated(masks / "m0.png", out).kept == [out]
    with pytest.raises(OutputError, match=r"street\.png: already exists, generated from another condition"):
        translated(masks / "m1.png", out)
    assert out.read_bytes() == first
    with pytest.raises(
        OutputError, match="is one file, but 2 images are requested; give a folder, or one input with num 1"
    ):
        translated(masks / "m0.png", out, num=2)
    with pytest.raises(
        OutputError, match=r"images are written as PNG; use a name that ends in \.png, or give a folder"
    ):
        translated(masks / "m0.png", tmp_path / "street.jpg")
    with pytest.raises(TranslationError, match="the results would be among the inputs"):
        translated(masks / "m0.png", masks / "m0.png", overwrite=True)
    (tmp_path / "v1.png").mkdir()
    assert translated(masks / "m1.png", tmp_path / "v1.png").made == [tmp_path / "v1.png/m1_0.png"]


def test_images_and_a_sheet(masks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen = []
    settings = GenerationOptions.from_flat(num=2, steps=2, batch=4)
    report = translate_files(
        tiny_pipeline(), TranslationFiles([masks], out), settings, "tiny", on_step=lambda *a: seen.append(a)
    )
    assert sorted(p.name for p in out.iterdir()) == [
        *(f"m{k}_{n}.png" for k in range(3) for n in range(2)),
        "sheet.png",
    ]
    assert len(report.made) == 6
    assert not report.kept
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    sheet = Image.open(out / "sheet.png")
    assert report.sheet == out / "sheet.png"
    assert sheet.width > 3 * 192
    assert sheet.height > 3 * 192
    with Image.open(out / "m1_1.png") as image:
        assert image.size == (16, 16)
        text = image.text  # type: ignore[attr-defined]
    assert text["piti:model"] == "tiny"
    assert (text["piti:seed"], text["piti:number"], text["piti:steps"], text["piti:sampler"]) == ("0", "1", "2", "ddpm")


def test_existing_results_are_kept_unless_overwritten(masks: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", GenerationOptions.from_flat(num=1, steps=2)
    translate_files(tiny_pipeline(), TranslationFiles([masks], out), settings, "tiny")
    before = pixels(out)
    save_png(Image.new("RGB", (16, 16)), out / "m0_0.png", png_text(out / "m0_0.png"))
    (out / "m2_0.png").unlink()
    report = translate_files(tiny_pipeline(), TranslationFiles([masks], out), settings, "tiny")
    assert [p.name for p in report.made] == ["m2_0.png"]
    assert [p.name for p in report.kept] == ["m0_0.png", "m1_0.png"]
    assert not any(pixels(out)["m0_0.png"])
    assert pixels(out)["m2_0.png"] == before["m2_0.png"]
    translate_files(tiny_pipeline(), TranslationFiles([masks], out, overwrite=True), settings, "tiny")
    assert pixels(out) == before


def test_a_seed_means_the_same_image_in_any_company(masks: Path, tmp_path: Path) -> None:
    translate_files(
        tiny_pipeline(),
        TranslationFiles([masks], tmp_path / "all"),
        GenerationOptions.from_flat(num=2, steps=2, batch=5),
        "tiny",
    )
    (masks / "m1.png").rename(tmp_path / "other.png")
    translate_files(
        tiny_pipeline(),
        TranslationFiles([tmp_path / "other.png"], tmp_path / "one"),
        GenerationOptions.from_flat(num=2, steps=2),
        "tiny",
    )
    for n in range(2):
        a, b = (
            np.asarray(Image.open(p), np.int16) for p in (tmp_path / f"all/m1_{n}.png", tmp_path / f"one/other_{n}.png")
        )
        assert np.abs(a - b).max() <= 1
    translate_files(
        tiny_pipeline(),
        TranslationFiles([tmp_path / "other.png"], tmp_path / "two"),
        GenerationOptions.from_flat(seed=1, steps=2),
        "tiny",
    )
    assert np.abs(b - np.asarray(Image.open(tmp_path / "two/other_0.png"), np.int16)).max() > 10


def test_bad_inputs_are_listed_together_before_anything_is_written(masks: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(masks / "strange.png")
    (masks / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(TranslationError, match=r"(?s)2 of 5 inputs.*broken\.png.*strange\.png"):
        translate_files(
            tiny_pipeline(), TranslationFiles([masks], tmp_path / "out"), GenerationOptions.from_flat(), "tiny"
        )
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(TranslationError, match="contains no images"):
        translate_files(
            tiny_pipeline(),
            TranslationFiles([tmp_path / "empty"], tmp_path / "out"),
            GenerationOptions.from_flat(),
            "tiny",
        )
    (tmp_path / "twin").mkdir()
    mask(9).save(tmp_path / "twin/m0.png")
    with pytest.raises(TranslationError, match="would write the same files"):
        translate_files(
            tiny_pipeline(),
            TranslationFiles([masks / "m0.png", tmp_path / "twin"], tmp_path / "out"),
            GenerationOptions.from_flat(),
            "tiny",
        )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"seed": 1}, "generated with seed = 0, but 1 is requested; add overwrite"),
        ({"guidance": 0.5}, "generated with guidance = .*, but .*0.5.* is requested"),
        ({"steps": 3, "seed": 1}, r"generated with seed = 0, but 1 is requested \(and steps differs\)"),
        ({"sampler": "ddim"}, "generated with sampler = ddpm, but ddim is requested"),
        ({"mask": 9}, "generated from another condition"),
        ({"weights": True}, "generated with other weights"),
        ({"number": True}, "generated with number = 0, but 1 is requested"),
        ({"stripped": True}, "and has no record of how it was generated"),
    ],
)
def test_an_image_is_kept_only_if_it_is_the_one_that_is_asked_for(
    tmp_path: Path, changed: dict[str, Any], why: str
) -> None:
    folder, out = tmp_path / "masks", tmp_path / "out"
    folder.mkdir()
    mask(1).save(folder / "m.png")
    first = {"num": 2, "batch": 2, "steps": 2}
    translate_files(tiny_pipeline(), TranslationFiles([folder], out), GenerationOptions.from_flat(**first), "tiny")
    sheet, pipeline = (out / "sheet.png").read_bytes(), tiny_pipeline()
    changed = dict(changed)
    if changed.pop("mask", None):
        mask(9).save(folder / "m.png")
    if changed.pop("weights", None):
        with torch.no_grad():
            next(pipeline.base.parameters()).add_(1)
    if changed.pop("number", None):
        (out / "m_0.png").replace(out / "m_1.png")
    if changed.pop("stripped", None):
        Image.open(out / "m_1.png").copy().save(out / "m_1.png")
    options = GenerationOptions.from_flat(**{**first, **changed})
    with pytest.raises(OutputError, match=f"already exists, ({why})"):
        translate_files(pipeline, TranslationFiles([folder], out), options, "tiny")
    assert (out / "sheet.png").read_bytes() == sheet
    report = translate_files(pipeline, TranslationFiles([folder], out, overwrite=True), options, "tiny")
    assert not report.kept
    assert len(translate_files(pipeline, TranslationFiles([folder], out), options, "called otherwise").kept) == 2


def test_a_sampler_that_does_not_exist_writes_nothing(masks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown sampler"):
        translate_files(
            tiny_pipeline(),
            TranslationFiles([masks], tmp_path / "out"),
            GenerationOptions.from_flat(sampler="dmpp"),
            "tiny",
        )
    assert not (tmp_path / "out").exists()


def test_results_never_lie_among_the_inputs(masks: Path) -> None:
    with pytest.raises(TranslationError, match="among the inputs"):
        translate_files(tiny_pipeline(), TranslationFiles([masks], masks), GenerationOptions.from_flat(), "tiny")


def test_a_long_sheet_says_what_it_leaves_out(masks: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("piti.generation.plan.SHEET_ROWS", 2)
    report = translate_files(
        tiny_pipeline(), TranslationFiles([masks], tmp_path / "out"), GenerationOptions.from_flat(steps=1), "tiny"
    )
    assert report.left_out == " (the first 2 of 3 conditions)"
    assert len(report.made) == 3


def test_a_wide_sheet_says_what_it_leaves_out(masks: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("piti.generation.plan.SHEET_IMAGES", 7)
    files, options = TranslationFiles([masks], tmp_path / "out"), GenerationOptions.from_flat(steps=1, num=3)
    report = translate_files(tiny_pipeline(), files, options, "tiny")
    assert report.left_out == " (the first 2 of 3 images of each)"
    assert len(report.made) == 9
    assert report.sheet is not None
    assert image_size(report.sheet)[0] == 3 * SHEET_SIDE + 4 * 4


def text_pipeline() -> PITIPipeline:
    torch.manual_seed(0)
    text = {"vocabulary": 256, "context": 12, "width": 16, "layers": 1, "heads": 2}
    base = Translator(text_spec=text, unet_spec=TINY_MODEL["unet"], image_size=16, patch_size=2)
    pipeline = PITIPipeline(base.eval(), scheduler_of(ScheduleSpec()), TextCondition(context=12))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class TestTexts:
    def test_images_are_named_after_the_words(self, tmp_path: Path) -> None:
        (tmp_path / "said.txt").write_text("the sea")
        settings = GenerationOptions.from_flat(num=1, steps=2)
        texts = ["A photo, of a Forest!", "?"]
        report = translate_files(
            text_pipeline(), TranslationFiles([tmp_path / "said.txt"], tmp_path, texts=texts), settings, "t"
        )
        assert [p.name for p in report.made] == ["said_0.png", "a-photo-of-a-forest_0.png", "text_0.png"]
        with Image.open(tmp_path / "a-photo-of-a-forest_0.png") as image:
            assert image.text["piti:condition"] == "A photo, of a Forest!"  # type: ignore[attr-defined]

    def test_a_file_and_the_text_in_it_give_the_same_image(self, tmp_path: Path) -> None:
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts/said.txt").write_text("the sea\n")
        settings = GenerationOptions.from_flat(num=1, steps=2)
        translate_files(
            text_pipeline(),
            TranslationFiles([tmp_path / "texts"], tmp_path, texts=["the sea", "the hills"]),
            settings,
            "t",
        )
        said, same, other = (Image.open(tmp_path / f"{k}_0.png").tobytes() for k in ("said", "the-sea", "the-hills"))
        assert said == same != other

    def test_long_ones_are_cut_and_that_is_said(self, tmp_path: Path) -> None:
        texts = ["the sea", "the  sea", "a photo of the sea"]
        report = translate_files(
            text_pipeline(),
            TranslationFiles([], tmp_path, texts=texts),
            GenerationOptions.from_flat(num=1, steps=2),
            "t",
        )
        assert [p.name for p in report.made] == ["the-sea_0.png", "a-photo-of-the-sea_0.png"]
        assert report.notes == ["text: only the first 12 of 18 tokens are read: a photo of the sea"]

    def test_of_files_too(self, tmp_path: Path) -> None:
        for name, text in (("short", "the sea"), ("long", "a photo of the sea")):
            (tmp_path / f"{name}.txt").write_text(text)
        files = TranslationFiles([tmp_path / "short.txt", tmp_path / "long.txt"], tmp_path / "out")
        notes = planned(text_pipeline(), files, GenerationOptions.from_flat(num=1, steps=2)).notes
        what = "1 of 2 texts fill the whole context length and may be truncated"
        assert notes == [f"{what}: {tmp_path / 'long.txt'}"]

    def test_refused(self, masks: Path, tmp_path: Path) -> None:
        settings = GenerationOptions.from_flat(num=1, steps=2)
        with pytest.raises(TranslationError, match="text: this model reads a mask"):
            translate_files(tiny_pipeline(), TranslationFiles([], tmp_path, texts=["the sea"]), settings, "t")
        with pytest.raises(TranslationError, match=r"m0\.png: is an image, but this model reads text"):
            translate_files(text_pipeline(), TranslationFiles([masks / "m0.png"], tmp_path), settings, "t")
        with pytest.raises(TranslationError, match=r"contains no \.txt files"):
            translate_files(text_pipeline(), TranslationFiles([masks], tmp_path), settings, "t")
        (tmp_path / "said.txt").write_text("the sea")
        with pytest.raises(TranslationError, match=r"said\.txt: is a text, but this model reads a mask"):
            translate_files(tiny_pipeline(), TranslationFiles([tmp_path / "said.txt"], tmp_path), settings, "t")
        with pytest.raises(TranslationError, match="nothing to translate"):
            translate_files(text_pipeline(), TranslationFiles([], tmp_path), settings, "t")
        with pytest.raises(TranslationError, match="the given text: is empty"):
            translate_files(text_pipeline(), TranslationFiles([], tmp_path, texts=[" "]), settings, "t")
        with pytest.raises(TranslationError, match=r"A! and a would write the same files"):
            translate_files(text_pipeline(), TranslationFiles([], tmp_path, texts=["A!", "a"]), settings, "t")


class TestShards:
    """Photographs of uniform colours far from class ids lie beside the masks: taken as masks they are refused."""

    @pytest.fixture
    def shards(self, masks: Path, tmp_path: Path) -> Path:
        root = tmp_path / "root"
        for folder in ("images", "labels", "sketches"):
            (root / folder).mkdir(parents=True)
        for path in masks.iterdir():
            Image.new("RGB", (16, 16), (200, 90, 30)).save(root / "images" / path.name)
            Image.open(path).save(root / "labels" / path.name)
            Image.new("L", (16, 16), 255).save(root / "sketches" / path.name)
        (root / "splits.json").write_text('{"train": ["m0", "m1"], "val": ["m2"]}')
        pack_shards(PackJob(root, tmp_path / "sh", "images", ("labels",), samples=1))
        pack_shards(PackJob(root, tmp_path / "both", "images", ("labels", "sketches"), samples=1))
        pack_shards(PackJob(root, tmp_path / "alone", "images", (), samples=1))
        return tmp_path / "sh"

    def made(self, out: Path, *inputs: Path) -> dict[str, bytes]:
        translate_files(
            tiny_pipeline(), TranslationFiles(inputs, out), GenerationOptions.from_flat(num=1, steps=2), "tiny"
        )
        return pixels(out)

    def test_conditions_are_what_the_manifest_says(self, masks: Path, shards: Path, tmp_path: Path) -> None:
        whole = self.made(tmp_path / "whole", masks)
        assert self.made(tmp_path / "folder", shards) == whole
        assert self.made(tmp_path / "json", shards / "shards.json") == whole
        assert self.made(tmp_path / "tar", shards / "sh-val-000000.tar") == {"m2_0.png": whole["m2_0.png"]}
        assert self.made(tmp_path / "chosen", tmp_path / "both") == whole

    def test_a_tar_that_went_from_its_manifest_is_refused(self, shards: Path, tmp_path: Path) -> None:
        tar = (shards / "sh-val-000000.tar").rename(tmp_path / "went.tar")
        with pytest.raises(
            TranslationError, match=r"went.tar: holds m2.png and m2.labels.png, and either could be.*shards.json"
        ):
            self.made(tmp_path / "out", tar)
        (tmp_path / "shards.json").write_text((shards / "shards.json").read_text())  # which names it otherwise
        with pytest.raises(TranslationError, match=r"went.tar: holds m2.png and m2.labels.png"):
            self.made(tmp_path / "out", tar)
        assert not (tmp_path / "out").exists()

    def test_shards_without_the_condition_are_refused(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(TranslationError, match=r"alone: only photographs were packed, no conditions"):
            self.made(tmp_path / "out", tmp_path / "alone")
        manifest = tmp_path / "both" / "shards.json"
        manifest.write_text(manifest.read_text().replace('"labels": "labels"', '"regions": "labels"'))
        with pytest.raises(
            TranslationError, match=r"both: which of regions, sketches is the model's mask does not follow"
        ):
            self.made(tmp_path / "out", tmp_path / "both")
        manifest = shards / "shards.json"
        manifest.write_text(manifest.read_text().replace('"labels": "labels"', '"labels": "masks"'))
        with pytest.raises(TranslationError, match=r"sh: the shards contain no mask \(.*KEY.masks.png"):
            self.made(tmp_path / "out", shards)


def test_what_cannot_be_used_may_be_left_out(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    mask(1).save(masks / "good.png")
    Image.new("L", (90, 10)).save(masks / "long.png")
    (masks / "torn.png").write_bytes(b"no picture")
    pipeline = tiny_pipeline()
    with pytest.raises(TranslationError, match=r"(?s)2 of 3 inputs.*long\.png.*torn\.png.*skip_bad"):
        translate_files(
            pipeline, TranslationFiles([masks], tmp_path / "out"), GenerationOptions.from_flat(steps=1), "tiny"
        )
    assert not (tmp_path / "out").exists()
    report = translate_files(
        pipeline,
        TranslationFiles([masks], tmp_path / "out"),
        GenerationOptions.from_flat(steps=1, skip_bad=True),
        "tiny",
    )
    assert [path.name for path in report.made] == ["good_0.png"]
    (left_out,) = (note for note in report.notes if note.startswith("skipped"))
    assert "2 of 3 inputs" in left_out
    assert "torn.png" in left_out
    (masks / "good.png").unlink()
    with pytest.raises(TranslationError, match="2 of 2 inputs"):  # nothing is left
        translate_files(
            pipeline,
            TranslationFiles([masks], tmp_path / "other"),
            GenerationOptions.from_flat(steps=1, skip_bad=True),
            "tiny",
        )
