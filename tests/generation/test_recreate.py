"""`piti translate --like` recreates an image bit-identically; its notes, and the device of the noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.core.errors import UserError
from piti.core.files import OutputError
from piti.core.images import png_bytes, png_text, save_png
from piti.diffusion.guidance import Guidance
from piti.generation.generate import make_images, noise_device
from piti.generation.kept import difference
from piti.generation.metadata import made_with, model_name, named_model
from piti.generation.metadata_schema import RemakeError
from piti.generation.options import GenerationOptions, Place
from piti.generation.recreate import read_record
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.cascade import Batch
from piti.pipelines.computing import Computing
from piti.pipelines.options import OWN_SAMPLING
from piti.pipelines.pipeline import PITIPipeline
from tests.generation.recreating import FAST, again, pipeline_of, with_text
from tests.generation.test_inputs import several_pipeline, sketch
from tests.generation.test_translate import text_pipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask, tiny_pipeline


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


class TestComputed:
    @pytest.mark.parametrize(
        ("told", "given", "flags", "installed", "wanted"),
        [
            ("float32 on cpu", {}, (), True, ("torch", "fp32")),
            ("openvino 2026.4.1 f32, float32 on cpu", {}, (), True, ("openvino", "fp32")),
            ("openvino 2026.4.1 bf16, float32 on cpu", {}, (), True, ("openvino", "auto")),
            ("openvino 2026.4.1 f32, float32 on cpu", {}, (), False, ("auto", "fp32")),
            ("openvino 2026.4.1 f32, float32 on cpu", {"compile": True}, (), True, ("auto", "fp32")),
            ("openvino 2026.4.1 f32, float32 on cpu", {"engine": "torch"}, ("engine",), True, ("torch", "fp32")),
        ],
    )
    def test_by_what_the_image_names(
        self,
        made: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        told: str,
        given: dict[str, Any],
        flags: tuple[str, ...],
        installed: bool,
        wanted: tuple[str, str],
    ) -> None:
        if installed and "openvino" in told:
            pytest.importorskip("openvino")
        elif not installed:
            monkeypatch.setattr("piti.engine.choice.importlib.util.find_spec", lambda name: None)
        record = read_record(with_text(made, tmp_path / "told.png", made_on=f"torch 2.13.0, {told}"))
        computing = record.computed(Computing("cpu", **given), flags)
        assert (computing.engine, computing.dtype) == wanted
        computing.check()


class TestNotes:
    def test_weights_versions_and_devices(self, made: Path, tmp_path: Path) -> None:
        other = tiny_pipeline()
        with torch.no_grad():
            next(other.base.parameters()).add_(1e-3)
        notes = again(other, made, tmp_path / "out")
        assert notes == [f"{made} was generated with other weights than this model has; the image will differ"]
        old = with_text(made, tmp_path / "old.png", version="0.0.1", made_on="abacus")
        notes = again(tiny_pipeline(), old, tmp_path / "out2")
        assert "was generated by piti 0.0.1, abacus, now it is piti" in notes[0]

    def test_images_of_before(self, made: Path, tmp_path: Path) -> None:
        """The keys that the first version wrote, and the mask beside them."""
        new = ("name", "batch", "weights", "version", "made_on", "condition_sha256", "raw_form", "raw")
        old = with_text(made, tmp_path / "old.png", **dict.fromkeys(new))
        assert len(png_text(old)) == 8
        with pytest.raises(RemakeError, match="contains no condition"):
            again(tiny_pipeline(), old, tmp_path / "out")
        notes = again(tiny_pipeline(), old, tmp_path / "out", [made.parent.parent / "street.png"])
        assert "generated by an earlier version" in notes[0]
        one, other = (np.asarray(Image.open(path), np.int16) for path in (made, tmp_path / "out/street_2.png"))
        assert np.abs(one - other).max() <= 1

    def test_names(self) -> None:
        for given in (("street", None), ("a", "b"), ("runs/x (old)", "some/where")):
            assert named_model(model_name(*given)) == given
            assert named_model(model_name(*given, "12ab")) == given


def test_an_image_among_the_results_is_not_kept_as_its_own_remake(made: Path) -> None:
    with pytest.raises(OutputError, match="would replace this one"):
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
        with pytest.raises(UserError, match=r"drawn on a CUDA device, and none is available here.*give seed"):
            make_images(pipeline, prepared, again, "tiny", "mask.png")
        assert record.options(options, ["seed"]).noise_on is None
        assert "noise_on = cuda, but cpu is requested" in difference(tmp_path / "a.png", made.text)
        assert difference(tmp_path / "a.png", made.text | {"piti:noise_on": "cuda"}) == ""
