"""Text: encoding and decoding of tokens, files, errors."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from piti.conditions import ConditionError, TextCondition, condition_from_config
from piti.conditions.text import NO_TOKEN
from piti.conditions.tokenizers import BytePairTokenizer, ByteTokenizer, tokenizer_from_config
from piti.core.images import Box
from tests.conftest import SHARED

TEXT = TextCondition(context=16)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A tiny tokenizer in GPT-2's files; "Ġ" is its letter for a space."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    vocabulary = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    return folder


class TestTokens:
    def test_bytes_then_nothing(self) -> None:
        raw = TEXT.tokens("sea é")
        assert raw.shape == (1, 1, 16)
        assert raw.flatten().tolist() == [*b"sea ", 0xC3, 0xA9] + [NO_TOKEN] * 10
        assert TEXT.text(raw) == "sea é"

    def test_white_space_is_folded_and_length_is_cut(self) -> None:
        assert torch.equal(TEXT.tokens("  a\n photo "), TEXT.tokens("a photo"))
        assert TEXT.text(TEXT.tokens("x" * 99)) == "x" * 16

    @given(st.text(min_size=1).filter(str.strip))
    def test_any_text_comes_back(self, text: str) -> None:
        condition = TextCondition(context=4 * len(text))
        assert condition.text(condition.tokens(text)) == " ".join(text.split())

    def test_the_null_is_the_empty_text(self) -> None:
        null = TEXT.null(2, 1, 16, dtype=torch.bfloat16)
        assert null.shape == (2, 1, 1, 16)
        assert null.dtype == torch.int32
        assert (null == NO_TOKEN).all()

    def test_crops_and_mirrors_leave_it(self) -> None:
        raw = TEXT.tokens("sea")
        assert torch.equal(TEXT.flip(TEXT.crop_resize(TEXT.squared(raw), Box(3, 4, 5, 5), 7)), raw)
        assert torch.equal(TEXT.encode(raw[None]), raw[None])

    @pytest.mark.parametrize("text", ["", "  \n"])
    def test_nothing_is_no_text(self, text: str) -> None:
        with pytest.raises(ConditionError, match="the given text: is empty"):
            TEXT.tokens(text)

    def test_its_picture_shows_the_words(self) -> None:
        words, none = TEXT.preview(TEXT.tokens("sea")), TEXT.preview(TEXT.null(1, 1, 16)[0])
        assert words.size == (192, 192)
        assert words.tobytes() != none.tobytes() != Image.new("RGB", (192, 192), "white").tobytes()


class TestFiles:
    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a photo\n")
        assert TEXT.text(TEXT.load(tmp_path / "a.txt")) == "a photo"

    def test_no_file_and_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(ConditionError, match=r"gone\.txt: no such file; check the path"):
            TEXT.load(tmp_path / "gone.txt")
        with pytest.raises(ConditionError, match=r"cannot be read \(.+\); give a \.txt file"):
            TEXT.load(tmp_path)
        (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConditionError, match=r"b\.txt: cannot be read as UTF-8"):
            TEXT.load(tmp_path / "b.txt")

    def test_a_mark_of_byte_order_is_no_part_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("sea", encoding="utf-8-sig")
        assert TEXT.text(TEXT.load(tmp_path / "a.txt")) == "sea"

    def test_what_is_cut_is_said(self) -> None:
        assert TEXT.cut("x" * 16) == ""
        assert TEXT.cut("x" * 17).startswith("only the first 16 of 17 tokens are read")

    @pytest.mark.parametrize("text", ["stra\udcdfe", "\ud800"])
    def test_what_is_no_text_in_any_encoding(self, text: str) -> None:
        with pytest.raises(ConditionError, match=r"the given text: is not valid UTF-8; encode it as UTF-8"):
            TEXT.tokens(text)
        with pytest.raises(ConditionError, match=r"the given text: is not valid UTF-8"):
            TEXT.cut(text)

    def test_a_picture_s_file_is_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(ConditionError, match=r"m\.png: is an image, but this model reads text"):
            TEXT.load(tmp_path / "m.png")

    def test_a_picture_is_no_text(self) -> None:
        with pytest.raises(ConditionError, match="is an image, but this model reads text"):
            TEXT.read(Image.new("L", (4, 4)), "mask.png")


class TestChecked:
    def test_as_it_is(self) -> None:
        raw = TEXT.tokens("sea")
        assert TEXT.checked(raw, "it") is raw

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (torch.zeros(1, 1, 4, dtype=torch.int32), r"expected token ids \[1, 1, 16\]"),
            (torch.zeros(1, 1, 16), "integer type"),
            (torch.full((1, 1, 16), 256), "holds 256; tokens are 0..255"),
            (torch.full((1, 1, 16), -2), "holds -2"),
        ],
    )
    def test_refused(self, raw: torch.Tensor, message: str) -> None:
        with pytest.raises(ConditionError, match=message):
            TEXT.checked(raw, "it")


class TestConfig:
    def test_comes_back(self, gpt2: Path) -> None:
        for condition in (TEXT, TextCondition(7, BytePairTokenizer(gpt2, 6)), TextCondition(128, BytePairTokenizer())):
            assert condition_from_config(condition.to_config()) == condition

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"kind": "text", "length": 4}, "takes no length"),
            ({"kind": "text", "context": 0}, "context 0 is not a number"),
            ({"kind": "text", "tokenizer": "bytes"}, "tokenizer 'bytes': expected"),
            ({"kind": "text", "tokenizer": {"kind": "byte"}}, "unknown tokenizer 'byte'; did you mean 'bytes'"),
            ({"kind": "text", "tokenizer": {"kind": "bytes", "folder": "x"}}, "takes no folder"),
            ({"kind": "text", "tokenizer": {"kind": "gpt2", "size": "x"}}, "size 'x' is not a number"),
        ],
    )
    def test_refused(self, config: dict[str, object], message: str) -> None:
        with pytest.raises(ConditionError, match=message):
            condition_from_config(config, "it")


class TestBytePairs:
    def test_lower_case_merged(self, gpt2: Path) -> None:
        tokenizer = BytePairTokenizer(gpt2, 6)
        assert tokenizer.encode("AB abb") == [3, 4, 1]
        assert tokenizer.decode([3, 4, 1]) == "ab abb"

    def test_the_real_files_give_glides_tokens(self, golden: Path) -> None:
        folder = SHARED / "weights" / "gpt2"
        if not folder.is_dir():
            pytest.skip(f"gpt2: not present at {folder} (set PITI_SHARED)")
        tokenizer = BytePairTokenizer(folder)
        for case in json.loads((golden / "glide_tokens.json").read_text())["cases"]:
            assert tokenizer.encode(case["text"]) == case["tokens"], case["text"]

    def test_glides_gzipped_files(self, gpt2: Path, tmp_path: Path) -> None:
        beside = tmp_path / "glide"
        beside.mkdir()
        (beside / "encoder.json.gz").write_bytes(gzip.compress((gpt2 / "vocab.json").read_bytes()))
        (beside / "vocab.bpe.gz").write_bytes(gzip.compress((gpt2 / "merges.txt").read_bytes()))
        assert BytePairTokenizer(beside, 6).encode("ab") == [3]

    def test_without_files(self) -> None:
        assert BytePairTokenizer().decode([1, 2]) == "2 tokens"
        with pytest.raises(ConditionError, match="import it with tokenizer FOLDER"):
            BytePairTokenizer().encode("a")

    def test_broken_files(self, gpt2: Path) -> None:
        with pytest.raises(ConditionError, match="vocabulary has 6 ids, the model 50257"):
            BytePairTokenizer(gpt2).encode("a")
        (gpt2 / "merges.txt").write_text("#version: 0.2\na b c\n")
        with pytest.raises(ConditionError, match=r"merges.txt: expected two tokens per line, got 'a b c'"):
            BytePairTokenizer(gpt2, 6).encode("a")
        (gpt2 / "vocab.json").write_text("{")
        with pytest.raises(ConditionError, match=r"vocab.json: not valid JSON"):
            BytePairTokenizer(gpt2, 6).encode("a")
        (gpt2 / "vocab.json").unlink()
        with pytest.raises(ConditionError, match=r"contains none of vocab.json, encoder.json, encoder.json.gz"):
            BytePairTokenizer(gpt2, 6).encode("a")

    def test_as_recorded_from_glide(self, golden: Path) -> None:
        folder = os.environ.get("PITI_GPT2")
        if folder is None:
            pytest.skip("GPT-2's tokenizer files: not given (set PITI_GPT2 to their folder)")
        recorded = json.loads((golden / "glide_tokens.json").read_text())
        tokenizer = BytePairTokenizer(Path(folder))
        assert tokenizer.size == recorded["n_vocab"]
        condition = TextCondition(128, tokenizer)
        for case in recorded["cases"]:
            assert tokenizer.encode(case["text"]) == case["tokens"]
            if case["text"]:
                assert (condition.tokens(case["text"]) != NO_TOKEN).flatten().tolist() == case["mask"]

    def test_a_kind_has_its_own_keys(self) -> None:
        assert tokenizer_from_config({"kind": "bytes"}, "it") == ByteTokenizer()
