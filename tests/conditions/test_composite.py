"""Several conditions at once: joined, split, absent, dropped, saved, and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import (
    ClassTable,
    Condition,
    ConditionError,
    GeometryCondition,
    MaskCondition,
    NoCondition,
    PaletteCondition,
    SeveralCondition,
    SketchCondition,
    TextCondition,
    condition_from_config,
)
from piti.core.images import Box, ImageError

TABLE = ClassTable(names=("a", "b", "c"), ids=(0, 1, 2), colours=((250, 10, 10), (10, 250, 10), (10, 10, 250)))
MASK, SKETCH = MaskCondition(TABLE), SketchCondition(clip=32)
BOTH = SeveralCondition({"mask": MASK, "sketch": SKETCH})


@dataclass(frozen=True)
class Slopes(Condition):
    """A made-up kind of two float16 planes, x and y, of which mirroring turns the first's sign; NaN is a hole."""

    kind: ClassVar[str] = "slopes"

    @property
    def channels(self) -> int:
        return 3

    @property
    def planes(self) -> int:
        return 2

    @property
    def raw_dtype(self) -> torch.dtype:
        return torch.float16

    def read(self, image: Image.Image, source: str) -> torch.Tensor:
        values = torch.from_numpy(np.asarray(image.convert("L"), np.float16))
        return torch.stack([values, -values])

    def crop_resize(self, raw: torch.Tensor, box: Box, size: Any) -> torch.Tensor:
        assert raw.dtype == torch.float16
        return MASK.crop_resize(raw[:1].int(), box, size).half() * torch.tensor([1, -1]).half().view(2, 1, 1)

    def checked(self, raw: torch.Tensor, source: str) -> torch.Tensor:
        assert raw.dtype == torch.float16
        return raw

    def flip(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.flip(-1) * torch.tensor([-1, 1], dtype=torch.float16).view(2, 1, 1)

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        hole = raw[..., :1, :, :].isnan()
        return torch.cat([raw.nan_to_num().float(), hole.float()], -3)

    def preview(self, raw: torch.Tensor) -> Image.Image:
        return Image.new("RGB", (raw.shape[-1], raw.shape[-2]))

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> Slopes:
        return cls()


class Silent(Slopes):
    """Two planes of float16, of which its class says nothing."""

    planes = Condition.planes
    raw_dtype = Condition.raw_dtype


def mask(size: tuple[int, int] = (8, 6), seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 3, (height, width), dtype=np.uint8))


def sketch(size: tuple[int, int] = (8, 6), seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(255 * (np.random.default_rng(seed).random((height, width)) < 0.1).astype(np.uint8))


def pair(size: tuple[int, int] = (8, 6), seed: int = 0) -> dict[str, Image.Image]:
    return {"mask": mask(size, seed), "sketch": sketch(size, seed)}


class TestEncoding:
    def test_channels_are_those_of_the_parts_in_order(self) -> None:
        encoded = BOTH.encode(BOTH.load(pair()))
        assert BOTH.channels == encoded.shape[0] == 4
        assert torch.equal(encoded[:3], MASK.encode(MASK.read(mask(), "m")))
        assert torch.equal(encoded[3:], SKETCH.encode(SKETCH.read(sketch(), "s")))
        turned = SeveralCondition({"sketch": SKETCH, "mask": MASK})
        assert torch.equal(turned.encode(turned.load(pair()))[:1], encoded[3:])

    @pytest.mark.parametrize(("name", "channels"), [("mask", slice(3, 4)), ("sketch", slice(0, 3))])
    def test_an_absent_part_encodes_to_its_null_exactly(self, name: str, channels: slice) -> None:
        """And a part that is given but says nothing does not: a mask of class 0 is no absent mask."""
        both, one = BOTH.load(pair()), BOTH.load({name: pair()[name]})
        encoded, null = BOTH.encode(torch.stack([both, one])), BOTH.null(1, 6, 8)[0]
        assert torch.equal(encoded[1][channels], null[channels])
        kept = [k for k in range(4) if k not in range(4)[channels]]
        assert torch.equal(encoded[1][kept], encoded[0][kept])
        assert not torch.equal(encoded[0][channels], null[channels])

    def test_the_null_is_that_of_each_part(self) -> None:
        null = BOTH.null(2, 3, 5, dtype=torch.float16)
        assert null.shape == (2, 4, 3, 5)
        assert null.dtype == torch.float16
        assert (null[:, :3] == 0).all()
        assert (null[:, 3] == 1).all()
        ones = SeveralCondition({"mask": MaskCondition(TABLE, null_value=0.5), "palette": PaletteCondition(TABLE)})
        assert ones.null(1, 1, 1).flatten().tolist() == [0.5] * 3 + [1.0] * 3

    def test_batches_of_batches(self) -> None:
        raws = torch.stack([BOTH.load(pair(seed=k)) for k in range(6)])
        assert torch.equal(BOTH.encode(raws.view(2, 3, *raws.shape[1:])).flatten(0, 1), BOTH.encode(raws))
        assert BOTH.given(raws).shape == (6, 2)


class TestRawForm:
    def test_every_operation_is_that_of_the_parts(self) -> None:
        """Crops of any shape and mirroring, with a part of another type whose planes mirror differently."""
        slopes = Slopes()
        three = SeveralCondition({"mask": MASK, "slopes": slopes, "sketch": SKETCH})
        assert (three.planes, three.raw_dtype, three.channels) == (3 + 1 + 2 + 1, torch.float16, 7)
        given = pair() | {"slopes": mask(seed=5)}
        raw, box = three.load(given), Box(1, 2, 6, 4)
        raws = {name: part.read(given[name], name) for name, part in three.parts.items()}
        for size in (3, (2, 5), (12, 18)):
            cut = three.flip(three.crop_resize(raw, box, size))
            for (_, planes), (name, part) in zip(three._split(cut), three.parts.items(), strict=True):
                wanted = part.flip(part.crop_resize(raws[name], box, size))
                assert planes.dtype == wanted.dtype
                assert torch.equal(planes, wanted)
            assert three.given(cut).all()

    def test_absent_survives_crops_mirrors_and_stacks(self) -> None:
        raws = [BOTH.load(pair()), BOTH.load({"mask": mask()}), BOTH.load({"sketch": sketch()})]
        cut = [BOTH.flip(BOTH.crop_resize(raw, Box(0, 0, 6, 6), 4)) for raw in raws]
        assert BOTH.given(torch.stack(cut)).tolist() == [[True, True], [True, False], [False, True]]
        assert torch.equal(BOTH.encode(cut[1])[3:], torch.ones(1, 4, 4))
        assert BOTH.given(BOTH.squared(raws[2])).tolist() == [False, True]

    def test_types_hold_every_value(self) -> None:
        """300 classes are int16, which float16 would round beyond 2048 (unlabelled is 32767)."""
        count = 300
        names = tuple(map(str, range(count)))
        colours = tuple((k % 256, k // 256, 9) for k in range(count))
        many = MaskCondition(ClassTable(names=names, ids=tuple(range(count)), colours=colours, ignore=999))
        assert many.raw_dtype == torch.int16
        assert SeveralCondition({"m": many, "s": SKETCH}).raw_dtype == torch.int16
        wide = SeveralCondition({"m": many, "slopes": Slopes()})
        assert wide.raw_dtype == torch.float32
        ids = np.array([[0, 299, 999, 256]], np.uint16)
        raw = wide.load({"m": Image.fromarray(ids), "slopes": torch.zeros(2, 1, 4, dtype=torch.float16)})
        (_, planes), _ = wide._split(raw)
        assert planes.dtype == torch.int16
        assert planes.flatten().tolist() == [0, 299, 32767, 256]
        assert BOTH.raw_dtype == torch.uint8

    def test_geometry_beside_lines(self) -> None:
        """Real planes of another type: depth with a hole, whose normals change with the side they are seen from."""
        geometry = GeometryCondition()
        condition = SeveralCondition({"lines": SKETCH, "depth": geometry})
        assert (condition.planes, condition.raw_dtype) == (2 + 1 + 4, torch.float16)
        depth = (1 + torch.arange(8.0) / 4).expand(1, 6, 8).clone()
        depth[0, :2, :3] = 0
        raw = condition.load({"lines": sketch(), "depth": depth})
        assert condition.checked(raw, "t") is raw
        alone = geometry.checked(depth, "d")
        box = Box(1, 0, 6, 6)
        cut = condition.flip(condition.crop_resize(raw, box, (3, 4)))
        wanted = geometry.encode(geometry.flip(geometry.crop_resize(alone, box, (3, 4))))
        assert torch.equal(condition.encode(cut)[1:], wanted)
        assert (wanted[4] == -1).any()
        absent = condition.encode(condition.load({"lines": sketch()}))[1:]
        assert torch.equal(absent, geometry.null(1, 6, 8)[0])

    def test_holes_stay_holes(self) -> None:
        condition = SeveralCondition({"slopes": Slopes(), "mask": MASK})
        slopes = torch.full((2, 6, 8), float("nan"), dtype=torch.float16)
        raw = condition.load({"slopes": slopes, "mask": mask()})
        assert condition.checked(raw, "t") is raw
        assert (condition.encode(raw)[2] == 1).all()
        alone = condition.encode(condition.load({"mask": mask()}))
        assert torch.equal(alone[:3], torch.zeros(3, 6, 8))
        assert condition.encode(raw).isfinite().all()


class TestSizes:
    def test_the_smaller_one_is_enlarged_by_its_own_filter(self) -> None:
        small = sketch((4, 3), seed=3)
        raw = BOTH.load({"mask": mask((16, 12)), "sketch": small})
        (_, _), (_, lines) = BOTH._split(raw)
        assert torch.equal(lines, SKETCH.crop_resize(SKETCH.read(small, "s"), Box(0, 0, 4, 3), (12, 16)))

    def test_a_pixel_of_rounding_is_no_other_proportion(self) -> None:
        assert BOTH.load({"mask": mask((480, 361)), "sketch": sketch((160, 120))}).shape == (4, 361, 480)

    def test_other_proportions_name_both_files(self, tmp_path) -> None:
        mask((8, 6)).save(tmp_path / "a.png")
        sketch((8, 8)).save(tmp_path / "b.png")
        with pytest.raises(ConditionError, match=r"b\.png is 8 x 8 and .*a\.png is 8 x 6.*same aspect ratio"):
            BOTH.load({"mask": tmp_path / "a.png", "sketch": tmp_path / "b.png"})


class TestDropout:
    def test_parts_are_dropped_as_often_as_documented(self) -> None:
        p, count = 0.2, 20_000
        encoded = torch.full((count, 4, 1, 1), 7.0)
        uniform = torch.rand(count, BOTH.draws, generator=torch.Generator().manual_seed(2))
        seen = BOTH.dropped(encoded, uniform, p)[..., 0, 0]
        null = BOTH.null(1, 1, 1)[0, :, 0, 0]
        gone = seen != 7
        assert torch.equal(torch.where(gone, seen, null), null.expand_as(seen))
        assert (gone[:, :3].all(1) == gone[:, :3].any(1)).all()  # the channels of a part together
        mask_gone, sketch_gone = gone[:, 0], gone[:, 3]
        shares = [mask_gone, sketch_gone, mask_gone & sketch_gone, ~mask_gone & ~sketch_gone]
        expected = [1 - (1 - p) ** 2] * 2 + [p + (1 - p) * p**2, (1 - p) ** 3]
        for share, wanted in zip(shares, expected, strict=True):
            assert share.float().mean().item() == pytest.approx(wanted, abs=0.01)

    def test_never_and_an_absent_part_stays_null(self) -> None:
        raws = torch.stack([BOTH.load(pair()), BOTH.load({"mask": mask()})])
        encoded = BOTH.encode(raws)
        uniform = torch.rand(2, 3)
        assert torch.equal(BOTH.dropped(encoded, uniform, 0.0), encoded)
        only_mask = BOTH.dropped(encoded, torch.tensor([[0.9, 0.0, 0.9], [0.9, 0.0, 0.9]]), 0.5)
        assert torch.equal(only_mask[:, 3:], encoded[:, 3:])
        assert (only_mask[:, :3] == 0).all()
        assert torch.equal(BOTH.dropped(encoded, torch.tensor([[0.0, 0.9, 0.9]] * 2), 0.5), BOTH.null(2, 6, 8))

    def test_one_condition_takes_one_number_a_row(self) -> None:
        encoded = torch.full((1000, 1, 1, 1), 7.0)
        uniform = torch.rand(1000, SKETCH.draws, generator=torch.Generator().manual_seed(1))
        assert uniform.shape == (1000, 1)
        assert torch.equal(SKETCH.dropped(encoded, uniform, 0.3).flatten() == 1, uniform[:, 0] < 0.3)


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"msk": mask()}, r"unknown part 'msk'; did you mean 'mask'\? known: mask, sketch"),
            ({}, "no part is given; give at least one of mask, sketch"),
            ({"mask": None}, "no part is given"),
            ({"mask": torch.zeros(1, 6, 8)}, "the given mask: expected class indices"),
            ({"sketch": torch.full((1, 6, 8), 9, dtype=torch.uint8)}, "the given sketch: 48 pixels hold"),
            ({"mask": Image.fromarray(np.full((6, 8), 99, np.uint8))}, "the given mask: id 99"),
        ],
    )
    def test_parts(self, given: Any, message: str) -> None:
        with pytest.raises(ConditionError, match=message):
            BOTH.load(given)

    def test_files(self, tmp_path) -> None:
        (tmp_path / "broken.png").write_bytes(b"nothing")
        (tmp_path / "said.txt").write_text("a mask")
        with pytest.raises(ImageError, match=r"broken\.png: not a readable image"):
            BOTH.load({"mask": mask(), "sketch": tmp_path / "broken.png"})
        with pytest.raises(ImageError, match=r"gone\.png: no such file"):
            BOTH.load({"mask": tmp_path / "gone.png"})
        with pytest.raises(ConditionError, match=r"said\.txt: is a text"):
            BOTH.load({"mask": tmp_path / "said.txt"})
        for read in (lambda: BOTH.load(tmp_path / "m.png"), lambda: BOTH.read(mask(), "m.png")):
            with pytest.raises(ConditionError, match=r"m\.png: this model reads mask, sketch; .*given mask=FILE"):
                read()

    @pytest.mark.parametrize("one", [MASK, TextCondition(), NoCondition()])
    def test_parts_for_a_model_of_one(self, one: Condition, tmp_path) -> None:
        with pytest.raises(ConditionError):
            one.load({"mask": tmp_path / "m.png"})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: raw[:3], r"expected \[4, h, w\] of torch.uint8"),
            (lambda raw: raw.float(), r"got \[4, 6, 8\] of torch.float32"),
            (lambda raw: raw[:, :0], "expected"),
            (lambda raw: torch.cat([raw[:2] * 0, raw[2:]]), "at least one of mask, sketch"),
            (lambda raw: torch.cat([raw[:2] * 2, raw[2:]]), "constant 1 or 0"),
            (lambda raw: torch.cat([raw[:1] * (torch.arange(8) > 3), raw[1:]]), "constant 1 or 0"),
            (lambda raw: torch.cat([raw[:2], raw[2:] + 7]), "t: mask: 48 pixels hold indices"),
        ],
    )
    def test_raw_tensors(self, change: Any, message: str) -> None:
        raw = BOTH.load(pair())
        assert BOTH.checked(raw, "t") is raw
        with pytest.raises(ConditionError, match=message):
            BOTH.checked(change(raw), "t")

    def test_raw_tensors_that_a_parts_type_cannot_hold(self) -> None:
        condition = SeveralCondition({"mask": MASK, "slopes": Slopes()})
        raw = condition.load({"mask": mask()})
        with pytest.raises(ConditionError, match=r"planes of 'mask' hold values that torch\.uint8 cannot"):
            condition.checked(raw + torch.tensor([0, 0, 0.5, 0, 0], dtype=torch.float16).view(5, 1, 1), "t")

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"mask": MASK}, "parts: mask named; name two or more"),
            ({}, "parts: none named"),
            ({"a": MASK, "b": TextCondition()}, r"parts\.b: 'text' cannot be a part"),
            ({"a": MASK, "b": NoCondition()}, r"parts\.b: 'none' cannot be a part"),
            ({"a": MASK, "b": BOTH}, r"parts\.b: 'several' cannot be a part"),
            ({"a": MASK, "b=c": SKETCH}, r"'b=c' is invalid"),
        ],
    )
    def test_what_cannot_be_a_part(self, parts: Any, message: str) -> None:
        with pytest.raises(ConditionError, match=message):
            SeveralCondition(parts)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({}, "missing key 'parts'"),
            ({"parts": {"a": {"kind": "sketch"}}}, "at least 2"),
            ({"parts": {"a": {"kind": "sketch"}, "b": {"kind": "skech"}}}, r"parts\.b: unknown condition 'skech'"),
            ({"parts": {"a": {"kind": "sketch"}, "b": {"kind": "sketch", "clp": 3}}}, r"parts\.b:.*\n.*'clp'"),
            ({"parts": {"a": {"kind": "sketch"}, "b": "sketch"}}, r"parts\.1\.condition"),
            ({"parts": {"a": {"kind": "sketch"}, "b": {"kind": "text"}}}, r"here: parts\.b: 'text' cannot"),
            ({"parts": [{"name": "a", "condition": {"kind": "sketch"}}] * 2}, "every part needs its own name"),
            ({"parts": "ab"}, "parts"),
            ({"part": {}}, "did you mean 'parts'"),
        ],
    )
    def test_configurations(self, config: Any, message: str) -> None:
        with pytest.raises(ConditionError, match=message):
            condition_from_config({"kind": "several", **config}, "here")


class TestSaved:
    def test_round_trip_through_json(self, tmp_path) -> None:
        again = condition_from_config(json.loads(json.dumps(BOTH.to_config())))
        assert again == BOTH
        assert isinstance(again, SeveralCondition)
        assert list(again.parts) == ["mask", "sketch"]
        assert again.found_in(tmp_path) == BOTH.saved_in(tmp_path) == BOTH

    def test_a_recipe_may_give_a_mapping(self) -> None:
        parts = {"mask": MASK.to_config(), "sketch": {"kind": "sketch", "clip": 32}}
        assert condition_from_config({"kind": "several", "parts": parts}) == BOTH

    def test_the_order_decides_whose_channels_are_which(self) -> None:
        """So it is part of what is saved and compared, unlike the order of keys."""
        turned = SeveralCondition({"sketch": SKETCH, "mask": MASK})
        assert turned.to_config() != BOTH.to_config()
        assert not turned.reads_like(BOTH)
        assert BOTH.reads_like(condition_from_config(BOTH.to_config()))
        assert not BOTH.reads_like(MASK)
        assert not BOTH.reads_like(SeveralCondition({"mask": MASK, "sketch": SketchCondition()}))


class TestPictures:
    def test_one_of_each_part(self) -> None:
        first, second = BOTH.previews(BOTH.load(pair()))
        assert np.array_equal(np.asarray(first), np.asarray(MASK.preview(MASK.read(mask(), "m"))))
        assert np.array_equal(np.asarray(second), np.asarray(SKETCH.preview(SKETCH.read(sketch(), "s"))))
        assert BOTH.preview(BOTH.load(pair())).size == (16, 6)

    def test_an_absent_one_is_grey_and_crossed(self) -> None:
        first, second = BOTH.previews(BOTH.load({"mask": mask((24, 18))}))
        assert first.size == second.size == (24, 18)
        assert second.getpixel((0, 0)) == (255, 255, 255)
        assert second.getpixel((0, 9)) == (225, 225, 225)
