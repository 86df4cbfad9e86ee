"""Translating with several conditions: as a mapping, by `--given`, from files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ConditionError, condition_from_config
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.generation.inputs import InputError, PartFiles, matched_parts, parsed_given
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationError, TranslationFiles
from piti.generation.translate import translate_files
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from tests.cli.running import code_and_output as run
from tests.cli.running import printed_error as mistake
from tests.conftest import TINY_MODEL
from tests.pipelines.test_pipeline import CLASSES, arrays, mask, seeded, tiny_pipeline

SETTINGS = GenerationOptions.from_flat(num=1, steps=2)


def several_pipeline() -> PITIPipeline:
    torch.manual_seed(0)
    parts = {"mask": {"kind": "mask", "classes": CLASSES}, "sketch": {"kind": "sketch", "clip": 8}}
    condition = condition_from_config({"kind": "several", "parts": parts})
    encoder: dict[str, Any] = {**TINY_MODEL["encoder"], "in_channels": condition.channels}  # type: ignore[dict-item]
    unet: Any = TINY_MODEL["unet"]
    base = Translator(encoder_spec=encoder, unet_spec=unet, image_size=16, patch_size=2)
    pipeline = PITIPipeline(base.eval(), scheduler_of(ScheduleSpec()), condition, defaults={"steps": 2})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sketch(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    lines = np.random.default_rng(seed).random((height, width)) < 0.1
    return Image.fromarray(255 * lines.astype(np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """m0, m1, m2 as masks; m1, m2, m3 as sketches."""
    for name, make, numbers in (("mask", mask, (0, 1, 2)), ("sketch", sketch, (1, 2, 3))):
        (tmp_path / name).mkdir()
        for k in numbers:
            make(k).save(tmp_path / name / f"m{k}.png")
    return {name: tmp_path / name for name in ("mask", "sketch")}


class TestPipeline:
    def test_either_or_both_in_any_form(self, folders: dict[str, Path]) -> None:
        pipeline = several_pipeline()
        files = {name: folder / "m1.png" for name, folder in folders.items()}

        def made(item: Any) -> np.ndarray:
            return arrays(pipeline(item, generator=seeded(), guidance=1.5).images)[0]

        both = made(files)
        pictures = {name: Image.open(path) for name, path in files.items()}
        raw = pipeline.read(files)
        assert np.array_equal(both, made({"sketch": files["sketch"], "mask": pictures["mask"]}))
        assert np.array_equal(both, made(raw))
        assert np.array_equal(made({"mask": files["mask"]}), made({"mask": str(files["mask"]), "sketch": None}))
        alone = made({"sketch": files["sketch"]})
        for other in (both, made({"mask": files["mask"]})):
            assert np.abs(alone - other).max() > 5

    def test_a_list_of_them_and_two_shapes(self) -> None:
        pipeline = several_pipeline()
        wide = {"mask": mask(4, 32, 16), "sketch": sketch(4, 16, 8)}
        images = pipeline([{"mask": mask(1)}, wide, {"sketch": sketch(1)}], generator=seeded()).images
        assert [image.size for image in images] == [(16, 16), (32, 16), (16, 16)]
        assert pipeline(wide, generator=seeded(), square=True).images[0].size == (16, 16)

    def test_refused(self) -> None:
        pipeline = several_pipeline()
        with pytest.raises(ConditionError, match="the given image: this model reads mask, sketch"):
            pipeline(mask(1))
        with pytest.raises(ConditionError, match=r"m\.png: this model reads mask, sketch"):
            pipeline("m.png")
        with pytest.raises(ConditionError, match="unknown part 'msk'"):
            pipeline({"msk": mask(1)})
        with pytest.raises(ConditionError, match="no part is given"):
            pipeline({"mask": None})
        with pytest.raises(ConditionError, match="mask: parts are given, but this model reads one mask"):
            tiny_pipeline()({"mask": mask(1)})

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        pipeline = several_pipeline()
        pipeline.save_pretrained(tmp_path / "model")
        again = PITIPipeline.from_pretrained(tmp_path / "model")
        again.set_progress_bar_config(disable=True)
        item = {"mask": mask(1), "sketch": sketch(1)}
        assert again.condition == pipeline.condition
        one, other = (arrays(p(item, generator=seeded()).images) for p in (pipeline, again))
        assert np.array_equal(one, other)


class TestFolders:
    def test_matched_by_stem(self, folders: dict[str, Path], tmp_path: Path) -> None:
        out = tmp_path / "out"
        report = translate_files(several_pipeline(), TranslationFiles([], out, parts=folders), SETTINGS, "tiny")
        assert [path.name for path in report.made] == [f"m{k}_0.png" for k in range(4)]
        assert report.notes == [
            "given: 1 of 4 have no mask (m3), only the other parts",
            "given: 1 of 4 have no sketch (m0), only the other parts",
        ]
        with Image.open(out / "m1_0.png") as image:
            assert image.text["piti:condition"] == "mask=m1.png, sketch=m1.png"  # type: ignore[attr-defined]
        with Image.open(out / "m3_0.png") as image:
            assert image.text["piti:condition"] == "sketch=m3.png"  # type: ignore[attr-defined]
        assert Image.open(report.sheet).size == (3 * 196 + 4, 4 * 196 + 4)  # mask, sketch and image of each
        assert [
            path.name
            for path in translate_files(
                several_pipeline(), TranslationFiles([], out, parts=folders), SETTINGS, "tiny"
            ).kept
        ] == [path.name for path in report.made]

    def test_results_within_a_folder_are_no_inputs(self, folders: dict[str, Path]) -> None:
        files = TranslationFiles([], folders["mask"] / "results", parts=folders)
        first = translate_files(several_pipeline(), files, SETTINGS, "tiny")
        assert translate_files(several_pipeline(), files, SETTINGS, "tiny").kept == first.made

    def test_one_part_alone(self, folders: dict[str, Path], tmp_path: Path) -> None:
        given = {"sketch": folders["sketch"]}
        report = translate_files(
            several_pipeline(), TranslationFiles([], tmp_path / "out", parts=given), SETTINGS, "tiny"
        )
        assert [path.name for path in report.made] == ["m1_0.png", "m2_0.png", "m3_0.png"]
        assert report.notes == []

    def test_an_image_depends_on_what_is_given_alone(self, folders: dict[str, Path], tmp_path: Path) -> None:
        translate_files(several_pipeline(), TranslationFiles([], tmp_path / "all", parts=folders), SETTINGS, "tiny")
        files = {name: folder / "m2.png" for name, folder in folders.items()}
        report = translate_files(
            several_pipeline(), TranslationFiles([], tmp_path / "one", parts=files), SETTINGS, "tiny"
        )
        one, other = (arrays([Image.open(path)]) for path in (report.made[0], tmp_path / "all/m2_0.png"))
        assert np.abs(one - other).max() <= 1


class TestCommandLine:
    def test_files(self, folders: dict[str, Path], tmp_path: Path) -> None:
        several_pipeline().save_pretrained(tmp_path / "model")
        out = tmp_path / "out"
        arguments = ["translate", "--model", tmp_path / "model", "--num", 1, "--out", out]
        given = [f"sketch={folders['sketch'] / 'm3.png'}", f"mask={folders['mask'] / 'm0.png'}"]
        code, said = run(*arguments, "--given", given[0], "--given", given[1])
        assert code == 0
        assert "1 image made" in said
        assert (out / "m0_0.png").is_file()  # named after the model's first part

    def test_mistakes(
        self, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        several_pipeline().save_pretrained(tmp_path / "model")
        tiny_pipeline().save_pretrained(tmp_path / "masks")
        file = folders["mask"] / "m0.png"
        said = mistake(monkeypatch, capfd, "translate", file, "--model", tmp_path / "model")
        assert "m0.png: the part is not named; this model reads mask, sketch" in said
        assert "--given mask=FILE_OR_FOLDER" in said
        said = mistake(monkeypatch, capfd, "translate", "--given", f"mask={file}", "--model", tmp_path / "masks")
        assert "this model reads one mask, without parts" in said
        said = mistake(monkeypatch, capfd, "translate", "--given", "mask", "--model", "nowhere")
        assert "--given mask: expected PART=FILE" in said


class TestRefused:
    def test_texts(self) -> None:
        assert parsed_given(["mask=a=b.png"]) == {"mask": Path("a=b.png")}
        for value in ("", "mask", "=a.png", "mask="):
            with pytest.raises(InputError, match="expected PART=FILE"):
                parsed_given([value])
        with pytest.raises(InputError, match=r"'mask' is already given as a\.png"):
            parsed_given(["mask=a.png", "mask=b.png"])

    def test_what_does_not_fit_together(self, folders: dict[str, Path], tmp_path: Path) -> None:
        condition = several_pipeline().condition
        (tmp_path / "empty").mkdir()
        for given, message in (
            ({}, "nothing to translate"),
            ({"msk": folders["mask"]}, "unknown part; did you mean 'mask'"),
            ({**folders, "sketch": folders["sketch"] / "m1.png"}, r"sketch=.*m1\.png: is not a folder, but mask=.* is"),
            ({"mask": tmp_path / "empty"}, "the folder contains no mask"),
        ):
            with pytest.raises(InputError, match=message):
                matched_parts(condition, given)
        mask(1).save(folders["mask"] / "m1.webp", lossless=True)
        with pytest.raises(InputError, match=r"m1\.png and m1\.webp have the same stem"):
            matched_parts(condition, folders)

    def test_unreadable_ones_are_listed_and_nothing_is_written(self, folders: dict[str, Path], tmp_path: Path) -> None:
        (folders["sketch"] / "m1.png").write_bytes(b"nothing")
        sketch(2, 16, 9).save(folders["sketch"] / "m2.png")
        with pytest.raises(TranslationError, match=r"(?s)2 of 4 inputs.*sketch/m1\.png: not a.*m2\.png is 16 x 9"):
            translate_files(several_pipeline(), TranslationFiles([], tmp_path / "out", parts=folders), SETTINGS, "tiny")
        with pytest.raises(TranslationError, match=r"gone\.png: no such file"):
            translate_files(
                several_pipeline(),
                TranslationFiles([], tmp_path / "out", parts={"mask": tmp_path / "gone.png"}),
                SETTINGS,
                "tiny",
            )
        with pytest.raises(TranslationError, match="text: this model reads a mask or a sketch"):
            translate_files(
                several_pipeline(), TranslationFiles([], tmp_path / "out", texts=["a street"]), SETTINGS, "tiny"
            )
        with pytest.raises(TranslationError, match="among the inputs"):
            translate_files(several_pipeline(), TranslationFiles([], folders["mask"], parts=folders), SETTINGS, "tiny")
        assert not (tmp_path / "out").exists()


def test_parts_are_one_key_of_a_mapping() -> None:
    files = PartFiles((("mask", Path("a/m.png")), ("sketch", Path("b/s.png"))))
    assert dict(files) == {"mask": Path("a/m.png"), "sketch": Path("b/s.png")}
    assert len({files, PartFiles(files.files)}) == 1
    assert str(files) == "mask=a/m.png, sketch=b/s.png"
    assert files.name == "mask=m.png, sketch=s.png"


def test_shards_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    condition = several_pipeline().condition
    (tmp_path / "sh").mkdir()
    (tmp_path / "sh" / "shards.json").write_text("{}")
    for path in (tmp_path / "sh", tmp_path / "sh" / "shards.json", tmp_path / "sh" / "a.tar"):
        for given, inputs in (({}, [path]), ({"mask": path}, [])):
            with pytest.raises(InputError, match=rf"^{path}: .*does not translate shards; .*given mask=FOLDER"):
                matched_parts(condition, given, inputs)
