from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import (
    ClassTable,
    ConditionError,
    MaskCondition,
    PaletteCondition,
    bit_colours,
    coco_stuff,
    condition_from_config,
)
from piti.core.images import Box, to_tensor

TABLE = ClassTable(
    names=("sky", "road", "car"), ids=(7, 0, 12), colours=((128, 128, 128), (128, 64, 128), (64, 0, 128)), ignore=255
)
INDICES = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)
RAW = torch.from_numpy(INDICES)[None]
PALETTE = PaletteCondition(TABLE)
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # labels 1..91 without annotations


class TestBitColours:
    def test_the_first_are_pascal_vocs(self) -> None:
        wanted = ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128))
        assert bit_colours(7) == wanted
        assert bit_colours(10)[7:] == ((64, 0, 0), (192, 0, 0), (64, 128, 0))

    def test_bits_by_hand(self) -> None:
        assert bit_colours(182)[-1] == (0, 128 + 64 + 32, 128 + 64)  # 182 = 0b010_110_110, each group blue, green, red
        assert bit_colours(0) == ()

    def test_all_differ_and_none_is_black(self) -> None:
        colours = bit_colours(5000)
        assert len({*colours, (0, 0, 0)}) == 5001
        assert colours[:182] == bit_colours(182)


class TestCocoStuff:
    def test_colours_are_the_generators(self) -> None:
        assert coco_stuff().colours == bit_colours(182)
        assert (coco_stuff().ignore, coco_stuff().ignore_colour) == (255, (0, 0, 0))

    def test_ids_and_names_are_those_of_the_pixel_maps(self) -> None:
        table = coco_stuff()
        assert table.ids == tuple(range(182))
        assert (table.names[0], table.names[91], table.names[181]) == ("person", "banner", "wood")
        assert list(table.names[91:]) == sorted(table.names[91:])
        unused = "street sign,hat,shoe,eye glasses,plate,mirror,window,desk,door,blender,hair brush"
        assert ",".join(table.names[label - 1] for label in UNUSED) == unused

    def test_a_pixel_map_becomes_the_released_picture(self) -> None:
        ids = np.array([[0, 181, 255, 6]], np.uint8)
        condition = PaletteCondition(coco_stuff())
        raw = condition.read(Image.fromarray(ids), "map")
        wanted = np.array([[(128, 0, 0), bit_colours(182)[181], (0, 0, 0), (128, 128, 128)]], np.uint8)
        assert torch.equal(condition.encode(raw), to_tensor(wanted))
        assert torch.equal(condition.read(Image.fromarray(wanted), "colours"), raw)

    def test_ids_of_the_other_convention_are_named_where_they_can_be(self) -> None:
        with pytest.raises(ConditionError, match=r"map: id 182 on 1 pixel is not in the class table \(ids 0\.\.181\)"):
            PaletteCondition(coco_stuff()).read(Image.fromarray(np.array([[1, 182]], np.uint8)), "map")


class TestPaletteCondition:
    def test_encodes_the_preview(self) -> None:
        """What the network sees is what a person sees, and what the release would make of the picture."""
        encoded = PALETTE.encode(RAW)
        assert encoded.dtype == torch.float32
        assert torch.equal(encoded, to_tensor(PALETTE.preview(RAW)))
        assert encoded[:, 0, 1].tolist() == pytest.approx([128 / 127.5 - 1, 64 / 127.5 - 1, 128 / 127.5 - 1], abs=1e-6)
        assert encoded[:, 0, 3].tolist() == [-1, -1, -1]

    def test_unlabelled_has_the_tables_colour(self) -> None:
        table = ClassTable.parse({**TABLE.to_dict(), "ignore_colour": (255, 255, 255)}, "table")
        assert PaletteCondition(table).encode(RAW)[:, 0, 3].tolist() == [1, 1, 1]

    def test_batches_encode_as_their_members(self) -> None:
        raw = torch.stack([RAW, RAW.flip(-1)])
        assert torch.equal(PALETTE.encode(raw), torch.stack([PALETTE.encode(one) for one in raw]))
        assert PALETTE.encode(raw[:, None]).shape == (2, 1, 3, 2, 4)

    def test_many_classes(self) -> None:
        table = ClassTable(names=[f"{k}" for k in range(400)], ids=range(400), colours=bit_colours(400), ignore=9999)
        condition = PaletteCondition(table)
        raw = condition.read(Image.fromarray(np.array([[399, 9999]], np.uint16)), "ids")
        assert raw.dtype == torch.int16
        assert torch.equal(condition.encode(raw), to_tensor(condition.preview(raw)))

    def test_reads_crops_and_checks_as_masks_do(self) -> None:
        mask = MaskCondition(TABLE)
        picture = mask.preview(RAW)
        assert torch.equal(PALETTE.read(picture, "picture"), RAW)
        assert torch.equal(PALETTE.crop_resize(RAW, Box(1, 0, 2, 2), 5), mask.crop_resize(RAW, Box(1, 0, 2, 2), 5))
        assert PALETTE.checked(RAW, "it") is RAW
        with pytest.raises(ConditionError, match=r"classes are 0\.\.2, unlabelled is 255"):
            PALETTE.checked(RAW.clone().fill_(3), "it")

    def test_null_is_white_by_default(self) -> None:
        assert PALETTE.channels == 3
        null = PALETTE.null(2, 4, 5, dtype=torch.bfloat16)
        assert (null.shape, null.dtype) == ((2, 3, 4, 5), torch.bfloat16)
        assert (null == 1).all()
        assert (PaletteCondition(TABLE, null_value=0.0).null(1, 2, 2) == 0).all()

    def test_round_trip_through_json(self) -> None:
        for condition in (PALETTE, PaletteCondition(coco_stuff(), null_value=0.5)):
            config = json.loads(json.dumps(condition.to_config()))
            assert config["kind"] == "palette"
            assert condition_from_config(config) == condition
        assert condition_from_config({"kind": "palette", "classes": TABLE.to_dict()}) == PALETTE
        assert condition_from_config({"kind": "mask", "classes": TABLE.to_dict()}) == MaskCondition(TABLE)
        assert MaskCondition(TABLE, 1.0) != PALETTE
        with pytest.raises(ConditionError, match="unknown key 'nul_value'; did you mean 'null_value'"):
            condition_from_config({**PALETTE.to_config(), "nul_value": 1.0}, "r.yaml")
