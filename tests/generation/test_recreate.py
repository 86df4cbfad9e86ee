"""Images that say how they were made, and `piti translate --like`, which makes them again."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from piti.conditions import condition_from_config
from piti.core.errors import UserError
from piti.core.images import ImageError, png_bytes, png_text, save_png
from piti.diffusion.guidance import Guidance
from piti.diffusion.schedule import ScheduleSpec, scheduler_of
from piti.generation.generate import Wanted, make_batch, make_images, noise_device
from piti.generation.kept import difference
from piti.generation.metadata import MAX_TEXT, made_with, model_name, named_model, packed
from piti.generation.metadata_schema import RemakeError
from piti.generation.options import GenerationOptions, Place
from piti.generation.recreate import read_record
from piti.generation.sources import TranslationError, TranslationFiles
from piti.generation.translate import translate_files
from piti.models import Translator
from piti.pipelines.cascade import Batch
from piti.pipelines.options import OWN_SAMPLING
from piti.pipelines.pipeline import PITIPipeline
from tests.cli.running import code_and_output as run
from tests.cli.running import printed_error as mistake
from tests.conftest import TINY_MODEL
from tests.generation.test_inputs import several_pipeline, sketch
from tests.generation.test_translate import text_pipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import CLASSES, mask, tiny_pipeline

FAST = GenerationOptions.from_flat(num=4, seed=5, steps=2, batch=3)


def pipeline_of(config: dict[str, Any]) -> PITIPipeline:
    torch.manual_seed(0)
    condition = condition_from_config(config)
    encoder: Any = {**TINY_MODEL["encoder"], "in_channels": condition.channels}  # type: ignore[dict-item]
    unet: Any = TINY_MODEL["unet"]
    base = Translator(encoder_spec=encoder, unet_spec=unet, image_size=16, patch_size=2)
    pipeline = PITIPipeline(base.eval(), scheduler_of(ScheduleSpec()), condition, defaults={"steps": 2})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def again(pipeline: PITIPipeline, file: Path, out: Path, inputs: Sequence[Path] = (), **given: Any) -> list[str]:
    """Make an image again; the notes."""
    record = read_record(file)
    settings = record.options(GenerationOptions.from_flat(**given), given)
    name = model_name(record.model, record.upsampler)
    return translate_files(record.applied(pipeline), TranslationFiles(inputs, out, like=record), settings, name).notes


def with_text(file: Path, target: Path, **changes: str | None) -> Path:
    """The same picture with other metadata; None: without this key."""
    text = png_text(file) | {f"piti:{key}": value for key, value in changes.items() if value is not None}
    gone = {f"piti:{key}" for key, value in changes.items() if value is None}
    with Image.open(file) as image:
        save_png(image, target, {key: value for key, value in text.items() if key not in gone})
    return target


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third of four images of a mask, made in a batch of three."""
    place = tmp_path_factory.mktemp("made")
    mask(1, 22, 16).save(place / "street.png")
    translate_files(tiny_pipeline(), TranslationFiles([place / "street.png"], place / "first"), FAST, "tiny")
    return place / "first/street_2.png"


class TestTheSameToTheBit:
    def test_one_of_four_of_a_mask_and_its_metadata(self, made: Path, tmp_path: Path) -> None:
        assert again(tiny_pipeline(), made, tmp_path / "out") == []
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sheet.png", "street_2.png"]
        assert (tmp_path / "out/street_2.png").read_bytes() == made.read_bytes()

    def test_the_batch_is_as_large_and_the_image_where_it_was(self, made: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        assert read_record(made).place == Place(row=2, rows=3)
        rows = []
        pipeline = tiny_pipeline()
        real = type(pipeline).generate

        def watched(self: PITIPipeline, batch: Batch, *arguments: Any) -> Any:
            rows.append(len(batch.rows))
            return real(self, batch, *arguments)

        monkeypatch.setattr(PITIPipeline, "generate", watched)
        again(pipeline, made, tmp_path / "out")
        again(pipeline, made, tmp_path / "small", batch=1)
        again(pipeline, made, tmp_path / "four", num=4)
        assert rows == [3, 1, 4]
        assert len(list((tmp_path / "four").glob("street_?.png"))) == 4

    @pytest.mark.parametrize(
        ("place", "order"),
        [
            (Place(0, 1), "a"),
            (Place(2, 4), "aaaa"),
            (Place(2, 4, 1, 3), "xaax"),
            (Place(1, 4, 1, 3), "xaxa"),
            (Place(3, 4, 0, 3), "axxa"),
        ],
    )
    def test_places(self, place: Place, order: str) -> None:
        rows = place.conditions()
        assert "".join("a" if one == place.order else "x" for one in rows) == order
        assert list(dict.fromkeys(rows)) == list(range(place.distinct))  # numbered by their first rows

    def test_of_several_conditions_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "masks").mkdir()
        for k in range(3):
            mask(k).save(tmp_path / f"masks/m{k}.png")
        translate_files(
            tiny_pipeline(),
            TranslationFiles([tmp_path / "masks"], tmp_path / "all"),
            replace(FAST, num=2, batch=6),
            "tiny",
        )
        assert read_record(tmp_path / "all/m1_1.png").place == Place(3, 6, 1, 3)
        again(tiny_pipeline(), tmp_path / "all/m1_1.png", tmp_path / "out")
        assert (tmp_path / "out/m1_1.png").read_bytes() == (tmp_path / "all/m1_1.png").read_bytes()

    @pytest.mark.parametrize("base_only", [True, False])
    def test_of_a_cascade_whose_own_settings_have_changed(self, base_only: bool, tmp_path: Path) -> None:
        mask(3, 20, 16).save(tmp_path / "m.png")
        rule = Guidance(kind="rescaled", w=0.7, phi=0.3, interval=(0.1, 0.9))
        settings = GenerationOptions.from_flat(
            seed=1, guidance=rule, base_only=base_only, size=None if base_only else 40
        )
        was = tiny_cascade(upsampler_noise=0.9, upsampler_truncates=True, upsampler_sampler="ddim", sampler="dpm++")
        translate_files(was, TranslationFiles([tmp_path / "m.png"], tmp_path / "first"), settings, "tiny")
        made = tmp_path / "first/m_0.png"
        again(tiny_cascade(sampler="ddim", steps=3), made, tmp_path / "out")
        assert (tmp_path / "out/m_0.png").read_bytes() == made.read_bytes()

    def test_of_a_sketch(self, tmp_path: Path) -> None:
        sketch(1, 30, 20).save(tmp_path / "s.png")
        pipeline = pipeline_of({"kind": "sketch", "clip": 8})
        translate_files(pipeline, TranslationFiles([tmp_path / "s.png"], tmp_path / "first"), FAST, "tiny")
        again(pipeline, tmp_path / "first/s_1.png", tmp_path / "out")
        assert (tmp_path / "out/s_1.png").read_bytes() == (tmp_path / "first/s_1.png").read_bytes()

    def test_of_depth_with_holes_squared(self, tmp_path: Path) -> None:
        depth = np.random.default_rng(0).uniform(1, 9, (20, 26)).astype(np.float32)
        depth[3:5, 4:9] = 0
        np.save(tmp_path / "d.npy", depth)
        pipeline = pipeline_of({"kind": "geometry"})
        settings = GenerationOptions.from_flat(seed=5, steps=2, square=True)
        translate_files(pipeline, TranslationFiles([tmp_path / "d.npy"], tmp_path / "first"), settings, "tiny")
        assert read_record(tmp_path / "first/d_0.png").raw(pipeline).shape == (4, 20, 20)
        again(pipeline, tmp_path / "first/d_0.png", tmp_path / "out")
        assert (tmp_path / "out/d_0.png").read_bytes() == (tmp_path / "first/d_0.png").read_bytes()

    def test_of_several_parts(self, tmp_path: Path) -> None:
        mask(1).save(tmp_path / "m.png")
        sketch(1).save(tmp_path / "s.png")
        pipeline, given = several_pipeline(), {"sketch": tmp_path / "s.png", "mask": tmp_path / "m.png"}
        for name, parts in (("both", given), ("one", {"sketch": tmp_path / "s.png"})):
            made = translate_files(
                pipeline,
                TranslationFiles([], tmp_path / name, parts=parts),
                GenerationOptions.from_flat(steps=2),
                "tiny",
            ).made[0]
            again(pipeline, made, tmp_path / f"{name} again")
            assert (tmp_path / f"{name} again" / made.name).read_bytes() == made.read_bytes()

    def test_of_texts_given_and_in_files(self, tmp_path: Path) -> None:
        (tmp_path / "said.txt").write_text(" the sea\n")
        pipeline, texts = text_pipeline(), ["Ein Fluß, longer than what is read"]
        report = translate_files(
            pipeline, TranslationFiles([tmp_path / "said.txt"], tmp_path / "first", texts=texts), FAST, "t"
        )
        for made, text in ((report.made[1], "the sea"), (report.made[6], texts[0])):
            assert png_text(made)["piti:text"] == text
            again(pipeline, made, tmp_path / "out")
            assert (tmp_path / "out" / made.name).read_bytes() == made.read_bytes()

    def test_in_memory_and_of_a_file(self, made: Path, tmp_path: Path) -> None:
        """What a caller with a tensor makes, whatever its type, is what the file would have become."""
        pipeline = tiny_pipeline()
        raw = pipeline.read(mask(1, 22, 16)).long()
        seen: list[tuple[int, int]] = []
        images = make_images(
            pipeline,
            pipeline.prepare(raw, FAST.sampling),
            FAST,
            "tiny",
            "street.png",
            lambda done, total, _: seen.append((done, total)),
        )
        assert [one.number for one in images] == [0, 1, 2, 3]
        record = read_record(made)
        applied, options = record.applied(pipeline), record.options(GenerationOptions())
        prepared = applied.prepare(record.raw(pipeline), options.sampling)
        (one,) = make_images(applied, prepared, options, "tiny", "street.png")
        assert png_bytes(one.image, one.text) == made.read_bytes()
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert png_bytes(images[2].image, images[2].text) == made.read_bytes()


class TestLarge:
    def test_what_networks_read_is_kept_where_the_whole_is_too_large(self, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        monkeypatch.setattr("piti.generation.metadata.MAX_TEXT", 2000)
        for name, pipeline, picture in (
            ("mask", tiny_cascade(), mask(1, 200, 160)),
            ("sketch", pipeline_of({"kind": "sketch", "clip": 8}), sketch(1, 200, 160)),
        ):
            picture.save(tmp_path / f"{name}.png")
            translate_files(
                pipeline,
                TranslationFiles([tmp_path / f"{name}.png"], tmp_path / "first"),
                GenerationOptions.from_flat(steps=2),
                "tiny",
            )
            made = tmp_path / f"first/{name}_0.png"
            assert read_record(made).reduced
            assert len(png_text(made)["piti:raw"]) <= 2000
            assert again(pipeline, made, tmp_path / "out") == []
            assert (np.asarray(Image.open(tmp_path / f"out/{name}_0.png")) == np.asarray(Image.open(made))).all()
        notes = again(pipeline, made, tmp_path / "large", size=32)
        assert "holds its condition only as small as it was read then" in notes[-1]

    def test_depth_is_kept_as_small_as_it_was_read(self, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        monkeypatch.setattr("piti.generation.metadata.MAX_TEXT", 8000)
        rows, columns = np.mgrid[:64, :80]
        np.save(tmp_path / "d.npy", (3 + np.sin(rows / 9) + columns / 50).astype(np.float32))
        pipeline = pipeline_of({"kind": "geometry"})
        translate_files(
            pipeline, TranslationFiles([tmp_path / "d.npy"], tmp_path / "first"), GenerationOptions.from_flat(), "tiny"
        )
        made = tmp_path / "first/d_0.png"
        assert read_record(made).raw(pipeline).shape == (4, 16, 20)
        assert again(pipeline, made, tmp_path / "out") == []
        assert (np.asarray(Image.open(tmp_path / "out/d_0.png")) == np.asarray(Image.open(made))).all()

    def test_else_it_is_asked_for(self, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        monkeypatch.setattr("piti.generation.metadata.MAX_TEXT", 40)
        mask(1).save(tmp_path / "m.png")
        translate_files(
            tiny_pipeline(),
            TranslationFiles([tmp_path / "m.png"], tmp_path / "first"),
            GenerationOptions.from_flat(steps=2),
            "tiny",
        )
        made = tmp_path / "first/m_0.png"
        with pytest.raises(RemakeError, match=r"m_0\.png: holds no condition .*give the mask's file beside like"):
            again(tiny_pipeline(), made, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert again(tiny_pipeline(), made, tmp_path / "out", [tmp_path / "m.png"]) == []
        assert (tmp_path / "out/m_0.png").read_bytes() == made.read_bytes()

    def test_what_cannot_be_compressed(self) -> None:
        noise = torch.randint(0, 256, (1, 500, 500), dtype=torch.uint8)
        assert packed(noise) is None
        assert len(packed(noise[:, :200]) or "") <= MAX_TEXT


class TestCommandLine:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        tiny_cascade().save_pretrained(tmp_path / "model")
        mask(1, 22, 16).save(tmp_path / "street.png")
        run("translate", tmp_path / "street.png", "--model", tmp_path / "model", "--seed", 7, "--out", tmp_path / "a")
        return tmp_path / "model"

    def test_an_image_alone_is_enough(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "street.png").unlink()
        code, said = run("translate", "--like", tmp_path / "a/street_2.png", "--out", tmp_path / "b")
        assert (code, "1 image made" in said) == (0, True)
        assert (tmp_path / "b/street_2.png").read_bytes() == (tmp_path / "a/street_2.png").read_bytes()

    def test_flags_win(self, model: Path, tmp_path: Path) -> None:
        like = ["translate", "--like", tmp_path / "a/street_2.png"]
        assert run(*like, "--seed", 0, "--steps", 1, "--guidance", 0, "--num", 1, "--out", tmp_path / "b")[0] == 0
        text = png_text(tmp_path / "b/street_0.png")
        assert (text["piti:seed"], text["piti:steps"], text["piti:upsampler_steps"]) == ("0", "1", "2")
        assert json.loads(text["piti:guidance"])["w"] == 0
        assert run(*like, "--base-only", "--out", tmp_path / "small")[0] == 0
        small = tmp_path / "small/street_2.png"
        assert Image.open(small).size == (22, 16)
        assert run("translate", "--like", small, "--no-base-only", "--out", tmp_path / "large")[0] == 0
        assert (tmp_path / "large/street_2.png").read_bytes() == (tmp_path / "a/street_2.png").read_bytes()

    def test_another_condition_is_allowed_and_said(self, model: Path, tmp_path: Path) -> None:
        mask(2).save(tmp_path / "other.png")
        made = tmp_path / "a/street_2.png"
        notes = again(tiny_cascade(), made, tmp_path / "b", [tmp_path / "other.png"])
        assert [note for note in notes if "other.png is another condition than that of" in note]
        assert png_text(tmp_path / "b/other_2.png")["piti:seed"] == "7"
        assert again(tiny_cascade(), made, tmp_path / "c", [tmp_path / "street.png"], base_only=True) == []

    def test_mistakes(self, model: Path, tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
        made = tmp_path / "a/street_2.png"

        def wrong(*arguments: object) -> str:
            return mistake(monkeypatch, capfd, "translate", "--like", *arguments)

        assert "no such file" in wrong(tmp_path / "none.png")
        assert "was not made by piti, or its metadata was stripped" in wrong(tmp_path / "street.png")
        Image.open(made).convert("RGB").save(tmp_path / "photo.jpg")
        assert "photo.jpg: is no PNG" in wrong(tmp_path / "photo.jpg")
        assert "a: is a folder; give a picture's file" in wrong(made.parent)
        assert "sheet.png: is a contact sheet, and no single image" in wrong(made.parent / "sheet.png")
        assert "is an edit of another image" in wrong(with_text(made, tmp_path / "e.png", edited="True"))
        assert "in the place of this one" in wrong(made, "--out", made.parent)
        model.rename(tmp_path / "moved")
        said = wrong(made, "--out", tmp_path / "b")
        assert "was made with" in said
        assert "--model" in said
        assert not (tmp_path / "b").exists()
        assert run("translate", "--like", made, "--model", tmp_path / "moved", "--out", tmp_path / "b")[0] == 0

    def test_another_upsampler(self, model: Path, tmp_path: Path) -> None:
        """A flag that wins: the base's image of then, enlarged by another model."""
        tiny_cascade(upsampler_steps=1).save_pretrained(tmp_path / "other")
        like = ["translate", "--like", tmp_path / "a/street_2.png", "--upsampler", tmp_path / "other"]
        assert run(*like, "--out", tmp_path / "b")[0] == 0
        text = png_text(tmp_path / "b/street_2.png")
        assert text["piti:model"] == f"{model} with the upsampler of {tmp_path / 'other'}"
        assert run("translate", "--like", tmp_path / "b/street_2.png", "--out", tmp_path / "c")[0] == 0
        assert (tmp_path / "c/street_2.png").read_bytes() == (tmp_path / "b/street_2.png").read_bytes()


class TestLargeBatches:
    def test_the_place_is_left_out_and_that_is_said(self, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        monkeypatch.setattr("piti.generation.metadata.MAX_ROWS", 3)
        mask(1).save(tmp_path / "m.png")
        translate_files(
            tiny_pipeline(), TranslationFiles([tmp_path / "m.png"], tmp_path / "a"), replace(FAST, batch=4), "tiny"
        )
        assert "piti:batch" not in png_text(tmp_path / "a/m_3.png")
        notes = again(tiny_pipeline(), tmp_path / "a/m_3.png", tmp_path / "out")
        assert "made in a batch of more than 64; the image may differ in its last bits" in notes[0]
        one, other = (np.asarray(Image.open(tmp_path / name), np.int16) for name in ("a/m_3.png", "out/m_3.png"))
        assert np.abs(one - other).max() <= 1

    def test_a_place_takes_no_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = tiny_pipeline()
        prepared, seen = pipeline.prepare(mask(1)), []
        wanted = Wanted(0, 0, 0, "m.png", "m")

        def generate(batch: Batch, on_step: object) -> list[Image.Image]:
            seen.append(batch)
            return [mask(1)] * len(batch.rows)

        monkeypatch.setattr(pipeline, "generate", generate)
        make_batch(pipeline, [prepared], [wanted], {}, place=Place(63, 64, 63, 64))
        assert len(seen[0].conditions) == 64
        assert {one.raw.data_ptr() for one in seen[0].conditions} == {prepared.raw.data_ptr()}


class TestNotes:
    def test_weights_versions_and_devices(self, made: Path, tmp_path: Path) -> None:
        other = tiny_pipeline()
        with torch.no_grad():
            next(other.base.parameters()).add_(1e-3)
        notes = again(other, made, tmp_path / "out")
        assert notes == [f"{made} was made with other weights than this model has now; the image will differ"]
        old = with_text(made, tmp_path / "old.png", version="0.0.1", made_on="abacus")
        notes = again(tiny_pipeline(), old, tmp_path / "out2")
        assert "was made by piti 0.0.1, abacus; here it is piti" in notes[0]

    def test_images_of_before(self, made: Path, tmp_path: Path) -> None:
        """The keys that the first version wrote, and the mask beside them."""
        new = ("name", "batch", "weights", "version", "made_on", "condition_sha256", "raw_form", "raw")
        old = with_text(made, tmp_path / "old.png", **dict.fromkeys(new))
        assert len(png_text(old)) == 8
        with pytest.raises(RemakeError, match="holds no condition"):
            again(tiny_pipeline(), old, tmp_path / "out")
        notes = again(tiny_pipeline(), old, tmp_path / "out", [made.parent.parent / "street.png"])
        assert "made by an earlier version" in notes[0]
        one, other = (np.asarray(Image.open(path), np.int16) for path in (made, tmp_path / "out/street_2.png"))
        assert np.abs(one - other).max() <= 1

    def test_names(self) -> None:
        for given in (("street", None), ("a", "b"), ("runs/x (old)", "some/where")):
            assert named_model(model_name(*given)) == given
            assert named_model(model_name(*given, "12ab")) == given


def bomb(side: int) -> str:
    return base64.b64encode(zlib.compress(bytes(side * side))).decode()


class TestHostile:
    """Nothing that a file says is believed."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seed": "-1"}, "'seed' = '-1'"),
            ({"seed": None}, "missing key 'seed'"),
            ({"number": "9999999999"}, "'number'"),
            ({"spell": "1"}, "unknown key 'spell'; did you mean"),
            ({"guidance": "{"}, "'guidance' = '{': is no JSON"),
            ({"guidance": "[" * 4000}, "'guidance'"),
            ({"guidance": '{"w": 1e400}'}, "guidance.w"),
            ({"batch": "[5, 3, 0, 1]"}, r"expected \[row, rows"),
            ({"batch": "[0, 100000000, 0, 1]"}, r"expected \[row, rows"),
            ({"batch": "[0, 65, 0, 1]"}, "of a batch of at most 64"),
            ({"upsampler_noise": "1e308"}, "upsampler_noise"),
            ({"batch": "[1, 2, 0, 2]"}, r"expected \[row, rows"),
            ({"model": "x" * 5000}, "piti:model holds 5000 characters"),
            ({"raw": "x" * (MAX_TEXT + 1)}, "piti:raw holds 262145 characters"),
            ({"raw_form": '{"dtype": "object", "shape": [1, 2, 2], "of": [2, 2], "reads": ""}'}, "raw_form.dtype"),
            ({"raw_form": '{"dtype": "uint8", "shape": [1, -2, 2], "of": [2, 2], "reads": ""}'}, "raw_form.shape"),
            (
                {"raw_form": '{"dtype": "uint8", "shape": [1, 2, 2], "of": [99999, 99999], "reads": ""}'},
                "at most 64000000 pixels",
            ),
        ],
    )
    def test_metadata(self, changes: dict[str, str | None], message: str, made: Path, tmp_path: Path) -> None:
        with pytest.raises(RemakeError, match=message) as error:
            read_record(with_text(made, tmp_path / "bad.png", **changes))
        assert "bad.png" in str(error.value)

    def test_conditions(self, made: Path, tmp_path: Path) -> None:
        pipeline, form = tiny_pipeline(), json.loads(png_text(made)["piti:raw_form"])
        for changes, data, message in (
            ({}, "%%%", "cannot be unpacked"),
            ({}, "AAAA", "cannot be unpacked"),
            ({}, bomb(2000), "expected 352 bytes"),  # 4 MB in 4 kB: what is too much is never unpacked
            ({"shape": [1, 8000, 8000], "of": [8000, 8000]}, bomb(2000), "expected 64000000 bytes"),
            ({"shape": [1, 17, 22]}, bomb(2), "stands for fewer pixels"),
            ({"shape": [4, 16, 22]}, bomb(2), r"expected \[1, h, w\] of torch.uint8, got \[4, 16, 22\]"),
            ({"dtype": "float64"}, bomb(2), "got .* of torch.float64"),
            ({"reads": "0123"}, bomb(2), "of another model, such as a mask with other classes"),
            ({"shape": [1, 2, 2]}, base64.b64encode(zlib.compress(b"\0\7\0\0")).decode(), "hold indices such as 7"),
        ):
            bad = with_text(made, tmp_path / "bad.png", raw=data, raw_form=json.dumps(form | changes))
            with pytest.raises(RemakeError, match=rf"bad\.png: .*{message}.*; give the mask's file beside like"):
                read_record(bad).raw(pipeline)

    def test_text_that_unfolds_is_refused(self, tmp_path: Path) -> None:
        info = PngImagePlugin.PngInfo()
        info.add_text("piti:model", "x" * 4_000_000, zip=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "bomb.png", pnginfo=info)
        with pytest.raises(ImageError, match=r"bomb\.png: not a readable picture .*too large"):
            read_record(tmp_path / "bomb.png")

    def test_of_another_kind(self, made: Path, tmp_path: Path) -> None:
        with pytest.raises(RemakeError, match="holds the condition of another model"):
            read_record(made).raw(pipeline_of({"kind": "sketch"}))
        fewer = {key: values[:2] for key, values in CLASSES.items()}
        with pytest.raises(RemakeError, match="holds the condition of another model"):
            read_record(made).raw(pipeline_of({"kind": "mask", "classes": fewer}))
        read_record(made).raw(pipeline_of({"kind": "mask", "classes": CLASSES, "null_value": 1.0}))  # means the same
        text = with_text(made, tmp_path / "text.png", text="the sea")
        with pytest.raises(RemakeError, match="was made of a text, and this model reads a mask"):
            read_record(text).raw(tiny_pipeline())

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("steps", "99999999999"),
            ("steps", "9,9,,"),
            ("sampler", "magic" * 500),
            ("size", "100000"),
            ("guidance", '{"w": 1e308}'),
        ],
    )
    def test_impossible_settings(self, key: str, value: str, made: Path, tmp_path: Path) -> None:
        bad = with_text(made, tmp_path / "bad.png", **{key: value})
        with pytest.raises(RemakeError, match=rf"(?s)bad\.png: .*{key}") as error:
            again(tiny_pipeline(), bad, tmp_path / "out")
        assert len(str(error.value)) < 1500
        assert not (tmp_path / "out").exists()

    def test_those_of_an_upsampler(self, made: Path, tmp_path: Path) -> None:
        mask(1).save(tmp_path / "m.png")
        translate_files(
            tiny_cascade(),
            TranslationFiles([tmp_path / "m.png"], tmp_path / "first"),
            GenerationOptions.from_flat(num=1),
            "tiny",
        )
        bad = with_text(tmp_path / "first/m_0.png", tmp_path / "bad.png", upsampler_steps="5000")
        with pytest.raises(RemakeError, match=r"bad\.png: piti:upsampler_sampler = .*, piti:upsampler_steps = 5000"):
            again(tiny_cascade(), bad, tmp_path / "out")
        with pytest.raises(UserError, match="steps 5000") as error:  # a flag's fault is not the file's
            again(tiny_cascade(), tmp_path / "first/m_0.png", tmp_path / "out", sampler="ddim", steps=5000)
        assert "m_0.png" not in str(error.value)

    def test_names_write_nothing_elsewhere(self, made: Path, tmp_path: Path) -> None:
        for name in ("../../up", "/etc/up", "..\\up", "u\tp"):
            bad = with_text(made, tmp_path / "bad.png", name=name)
            assert read_record(bad).stem == "up"

    def test_what_is_quoted_is_plain_and_short(self, made: Path, tmp_path: Path) -> None:
        nasty = "\x1b]0;owned\x07\n\u202e" * 200
        for changes in (
            {"model": nasty[:300]},
            {"model": "x" * 401},
            {"seed": nasty},
            {"guidance": nasty},
            {nasty[:10]: "1"},
            {"k" * 65: "1"},
            {f"key{k}": nasty for k in range(30)},
        ):
            with pytest.raises(RemakeError) as error:
                read_record(with_text(made, tmp_path / "bad.png", **changes))
            said = str(error.value)
            assert said.replace("\n", "").isprintable(), said
            assert len(said) < 6000
        for name in ("m" * 350, "m/" * 180):  # what no file can be called
            record = read_record(with_text(made, tmp_path / "bad.png", model=name))
            with pytest.raises(RemakeError, match=r"bad\.png was made with"):
                record.loaded(record.model, None, False)
        told = with_text(made, tmp_path / "told.png", version=nasty, made_on=nasty)
        assert all(note.isprintable() and len(note) < 1000 for note in read_record(told).differences(tiny_pipeline()))

    def test_a_model_that_only_the_file_names_is_not_downloaded(self, made: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        asked = {}
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **named: asked.update(named) or 1 / 0)
        record = read_record(with_text(made, tmp_path / "bad.png", model="some/one"))
        with pytest.raises(RemakeError, match=r"bad\.png was made with some/one: .*model"):
            record.loaded(record.model, None, False)
        assert asked["local_files_only"] is True


def test_an_image_among_the_results_is_not_kept_as_its_own_remake(made: Path) -> None:
    with pytest.raises(TranslationError, match="in the place of this one"):
        again(tiny_pipeline(), made, made.parent)


class TestNoise:
    """On which device it is drawn: one seed is other noise on another kind."""

    def test_it_is_drawn_where_a_gpu_computes_and_the_image_says_so(self) -> None:
        gpu, cpu = (SimpleNamespace(device=torch.device(name)) for name in ("cuda", "cpu"))
        assert noise_device(gpu, None) == torch.device("cuda")  # type: ignore[arg-type]
        assert noise_device(gpu, "cpu") == noise_device(cpu, None) == torch.device("cpu")  # type: ignore[arg-type]
        resolved = OWN_SAMPLING.resolve(tiny_pipeline())
        assert made_with(resolved, 0, "m", torch.device("cuda"))["piti:noise_on"] == "cuda"
        assert "piti:noise_on" not in made_with(resolved, 0, "m", torch.device("cpu"))

    def test_an_image_of_a_gpus_noise_is_not_made_again_without_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        pipeline = tiny_pipeline()
        options = GenerationOptions.from_flat(steps=1)
        prepared = pipeline.prepare(mask(1), options.sampling)
        (made,) = make_images(pipeline, prepared, options, "tiny", "mask.png")
        save_png(made.image, tmp_path / "a.png", made.text | {"piti:noise_on": "cuda"})
        record = read_record(tmp_path / "a.png")
        again = record.options(options)
        assert again.noise_on == "cuda"
        with pytest.raises(UserError, match=r"drawn on a CUDA device, and here is none.*give seed"):
            make_images(pipeline, prepared, again, "tiny", "mask.png")
        assert record.options(options, ["seed"]).noise_on is None
        assert "noise_on = cuda, and cpu is asked for" in difference(tmp_path / "a.png", made.text)
        assert difference(tmp_path / "a.png", made.text | {"piti:noise_on": "cuda"}) == ""
