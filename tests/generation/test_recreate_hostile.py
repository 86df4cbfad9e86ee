"""Hostile metadata: false values, decompression bombs, foreign paths."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from piti.core.errors import UserError
from piti.core.images import ImageError, png_text
from piti.generation.metadata import MAX_TEXT
from piti.generation.metadata_schema import RemakeError
from piti.generation.options import GenerationOptions
from piti.generation.recreate import read_record
from tests.generation.recreating import again, pipeline_of, translated_mask, with_text
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import CLASSES, tiny_pipeline


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
            ({"guidance": "{"}, "'guidance' = '{': is not JSON"),
            ({"guidance": "[" * 4000}, "'guidance'"),
            ({"guidance": '{"w": 1e400}'}, "guidance.w"),
            ({"batch": "[5, 3, 0, 1]"}, r"expected \[row, rows"),
            ({"batch": "[0, 100000000, 0, 1]"}, r"expected \[row, rows"),
            ({"batch": "[0, 65, 0, 1]"}, "of a batch of at most 64"),
            ({"upsampler_noise": "1e308"}, "upsampler_noise"),
            ({"batch": "[1, 2, 0, 2]"}, r"expected \[row, rows"),
            ({"model": "x" * 5000}, "piti:model has 5000 characters"),
            ({"raw": "x" * (MAX_TEXT + 1)}, "piti:raw has 262145 characters"),
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
            ({}, "%%%", "cannot be decompressed"),
            ({}, "AAAA", "cannot be decompressed"),
            ({}, bomb(2000), "expected 352 bytes"),  # 4 MB in 4 kB: what is too much is never unpacked
            ({"shape": [1, 8000, 8000], "of": [8000, 8000]}, bomb(2000), "expected 64000000 bytes"),
            ({"shape": [1, 17, 22]}, bomb(2), "is larger than the condition"),
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
        with pytest.raises(ImageError, match=r"bomb\.png: not a readable image .*too large"):
            read_record(tmp_path / "bomb.png")

    def test_of_another_kind(self, made: Path, tmp_path: Path) -> None:
        with pytest.raises(RemakeError, match="contains the condition of another model"):
            read_record(made).raw(pipeline_of({"kind": "sketch"}))
        fewer = {key: values[:2] for key, values in CLASSES.items()}
        with pytest.raises(RemakeError, match="contains the condition of another model"):
            read_record(made).raw(pipeline_of({"kind": "mask", "classes": fewer}))
        read_record(made).raw(pipeline_of({"kind": "mask", "classes": CLASSES, "null_value": 1.0}))  # means the same
        text = with_text(made, tmp_path / "text.png", text="the sea")
        with pytest.raises(RemakeError, match="was generated from a text, but this model reads a mask"):
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
        first = translated_mask(tiny_cascade(), tmp_path, GenerationOptions.from_flat(num=1))
        bad = with_text(first / "m_0.png", tmp_path / "bad.png", upsampler_steps="5000")
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
            with pytest.raises(RemakeError, match=r"bad\.png was generated with"):
                record.loaded(record.model, None, False)
        told = with_text(made, tmp_path / "told.png", version=nasty, made_on=nasty)
        assert all(note.isprintable() and len(note) < 1000 for note in read_record(told).differences(tiny_pipeline()))

    def test_a_model_that_only_the_file_names_is_not_downloaded(self, made: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        asked = {}
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **named: asked.update(named) or 1 / 0)
        record = read_record(with_text(made, tmp_path / "bad.png", model="some/one"))
        with pytest.raises(RemakeError, match=r"bad\.png was generated with some/one: .*model"):
            record.loaded(record.model, None, False)
        assert asked["local_files_only"] is True
