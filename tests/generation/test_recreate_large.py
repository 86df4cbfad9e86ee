"""Recreating images whose conditions or batches are too large for their metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.core.images import png_text
from piti.generation.generate import Wanted, make_batch
from piti.generation.metadata import MAX_TEXT, packed
from piti.generation.metadata_schema import RemakeError
from piti.generation.options import GenerationOptions, Place
from piti.generation.recreate import read_record
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.cascade import Batch
from tests.generation.recreating import FAST, again, pipeline_of, translated_mask
from tests.generation.test_inputs import sketch
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask, tiny_pipeline


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
        assert "contains its condition only at the size that was read" in notes[-1]

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
        made = translated_mask(tiny_pipeline(), tmp_path, GenerationOptions.from_flat(steps=2)) / "m_0.png"
        with pytest.raises(RemakeError, match=r"m_0\.png: contains no condition .*give the mask's file beside like"):
            again(tiny_pipeline(), made, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert again(tiny_pipeline(), made, tmp_path / "out", [tmp_path / "m.png"]) == []
        assert (tmp_path / "out/m_0.png").read_bytes() == made.read_bytes()

    def test_what_cannot_be_compressed(self) -> None:
        noise = torch.randint(0, 256, (1, 500, 500), dtype=torch.uint8)
        assert packed(noise) is None
        assert len(packed(noise[:, :200]) or "") <= MAX_TEXT


class TestLargeBatches:
    def test_the_place_is_left_out_and_that_is_said(self, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        monkeypatch.setattr("piti.generation.metadata.MAX_ROWS", 3)
        made = translated_mask(tiny_pipeline(), tmp_path, replace(FAST, batch=4)) / "m_3.png"
        assert "piti:batch" not in png_text(made)
        notes = again(tiny_pipeline(), made, tmp_path / "out")
        assert "generated in a batch of more than 64; the image may differ in its last bits" in notes[0]
        one, other = (np.asarray(Image.open(path), np.int16) for path in (made, tmp_path / "out/m_3.png"))
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
