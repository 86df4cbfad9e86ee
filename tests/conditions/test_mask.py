from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from piti.conditions import ClassTable, ConditionError, MaskCondition, condition_from_config
from piti.conditions.base import CONDITIONS
from piti.core.images import Box, center_box, open_image

TABLE = ClassTable(
    names=("sky", "road", "car"),
    ids=(7, 0, 300),
    colours=((128, 128, 128), (128, 64, 128), (64, 0, 128)),
    ignore=255,
)
MASK = MaskCondition(TABLE)
INDICES = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)
IDS = np.array([[7, 0, 300, 255], [300, 300, 0, 7]], np.uint16)
COLOURS = np.array([*TABLE.colours, *[(0, 0, 0)] * 253], np.uint8)[INDICES]


def classes_file(folder, **changes):
    values = {
        "classes": [
            {"id": 0, "name": "sky", "color": [1, 2, 3]},
            {"id": 1, "name": "road", "color": [4, 5, 6]},
        ],
        "ignore": 255,
        **changes,
    }
    path = folder / "classes.json"
    path.write_text(json.dumps(values))
    return path


def entry(**changes):
    return {"id": 1, "name": "road", "color": [4, 5, 6], **changes}


def table_of(count: int) -> ClassTable:
    colours = [(1 + k // 200, 1 + k % 200, 9) for k in range(count)]
    return ClassTable(names=[f"class {k}" for k in range(count)], ids=range(count), colours=colours, ignore=9999)


class TestClassTable:
    def test_reads_the_layout(self, tmp_path):
        table = ClassTable.read(classes_file(tmp_path))
        assert table.names == ("sky", "road")
        assert table.ids == (0, 1)
        assert table.colours == ((1, 2, 3), (4, 5, 6))
        assert (table.ignore, table.ignore_colour) == (255, (0, 0, 0))

    def test_black_is_not_ignored_where_a_class_is_black(self, tmp_path):
        sky = {"id": 0, "name": "sky", "color": [0, 0, 0]}
        assert ClassTable.read(classes_file(tmp_path, classes=[sky, entry()])).ignore_colour is None

    def test_ignore_may_be_left_out(self, tmp_path):
        path = classes_file(tmp_path)
        path.write_text(json.dumps({"classes": json.loads(path.read_text())["classes"]}))
        assert ClassTable.read(path).ignore is None

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            (entry(id=0), "classes.0.id and classes.1.id are both 0 ('sky' and 'road')"),
            (entry(name="sky"), "classes.0.name and classes.1.name are both 'sky'"),
            (entry(color=[1, 2, 3]), "classes.0.color and classes.1.color are both (1, 2, 3)"),
            (entry(color=[4, 5]), "classes.1.color"),
            (entry(color=[4, 5, 256]), "color = [4, 5, 256] ('road')"),
            (entry(id=70000), "classes.1.id = 70000 ('road')"),
            (entry(id="x"), "classes.1.id' = 'x'"),
            (entry(id=255), "ignore = 255 is also the id of 'road'"),
            (entry(colour=[1, 1, 1]), "unknown key 'classes.1.colour'; did you mean 'color'?"),
            ({"id": 1, "name": "road"}, "missing key 'classes.1.color'"),
        ],
    )
    def test_mistakes_name_the_file_and_the_key(self, tmp_path, second, message):
        first = {"id": 0, "name": "sky", "color": [1, 2, 3]}
        path = classes_file(tmp_path, classes=[first, second])
        with pytest.raises(ConditionError, match=re.escape(message)) as error:
            ClassTable.read(path)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not valid JSON"),
            ("[]", "'classes' is empty"),
            ("7", "expected an object"),
            ("{}", "missing key 'classes'"),
        ],
    )
    def test_not_a_class_table(self, tmp_path, text, message):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ConditionError, match=rf"c\.json.*\s.*{message}|c\.json: .*{message}"):
            ClassTable.read(tmp_path / "c.json")

    def test_no_file_and_no_classes(self, tmp_path):
        with pytest.raises(ConditionError, match="cannot read the class table"):
            ClassTable.read(tmp_path / "none.json")
        with pytest.raises(ConditionError, match="'classes' is empty"):
            ClassTable.read(classes_file(tmp_path, classes=[]))


class TestReading:
    def check(self, path, indices=INDICES):
        raw = MASK.load(path)
        assert raw.dtype == torch.uint8
        assert np.array_equal(raw[0].numpy(), indices)

    def test_sixteen_bit_ids(self, tmp_path):
        Image.fromarray(IDS).save(tmp_path / "m.png")
        assert open_image(tmp_path / "m.png").mode.startswith("I")
        self.check(tmp_path / "m.png")

    def test_eight_bit_ids_whose_order_is_not_the_tables(self, tmp_path):
        Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "m.png")
        self.check(tmp_path / "m.png", [[1, 0, 255]])

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_colours(self, tmp_path, mode):
        Image.fromarray(COLOURS).convert(mode).save(tmp_path / "m.png")
        self.check(tmp_path / "m.png")

    def test_transparent_pixels_are_unlabelled_whatever_their_colour(self, tmp_path):
        image = Image.fromarray(COLOURS).convert("RGBA")
        image.putpixel((0, 0), (9, 9, 9, 0))
        image.putpixel((1, 0), (*TABLE.colours[0], 0))
        image.save(tmp_path / "m.png")
        wanted = INDICES.copy()
        wanted[0, :2] = 255
        self.check(tmp_path / "m.png", wanted)

    def test_a_palette_picture_whose_colours_are_the_classes(self, tmp_path):
        """Written by a paint program: indices in order of appearance, no relation to ids."""
        image = Image.fromarray(COLOURS).quantize(8)
        assert image.mode == "P"
        image.save(tmp_path / "m.png")
        self.check(tmp_path / "m.png")

    def test_a_palette_picture_whose_indices_are_ids(self, tmp_path):
        image = Image.fromarray(np.array([[0, 7, 255]], np.uint8), "L").convert("P")
        image.putpalette([value for k in range(256) for value in (k, 255 - k, 17)])
        image.save(tmp_path / "m.png")
        self.check(tmp_path / "m.png", [[1, 0, 255]])

    def test_index_zero_of_a_black_palette_is_an_id_not_unlabelled(self, tmp_path):
        image = Image.new("P", (3, 2))
        image.putpalette([0] * 768)
        image.save(tmp_path / "m.png")
        self.check(tmp_path / "m.png", np.full((2, 3), 1))

    def test_an_id_map_saved_as_grey_rgb(self, tmp_path):
        Image.fromarray(np.array([[0, 7, 255]], np.uint8)).convert("RGB").save(tmp_path / "m.png")
        self.check(tmp_path / "m.png", [[1, 0, 255]])

    def test_grey_class_colours_are_colours(self, tmp_path):
        Image.new("RGB", (3, 2), TABLE.colours[0]).save(tmp_path / "m.png")
        self.check(tmp_path / "m.png", np.zeros((2, 3)))

    def test_bilevel_pixels_are_ids(self, tmp_path):
        two = MaskCondition(table_of(2))
        Image.fromarray(np.array([[False, True]])).save(tmp_path / "m.png")
        assert two.load(tmp_path / "m.png").tolist() == [[[0, 1]]]

    def test_many_classes_use_a_wider_raw_form(self, tmp_path):
        many = MaskCondition(table_of(400))
        ids = np.array([[0, 255, 399, 9999]], np.uint16)
        Image.fromarray(ids).save(tmp_path / "m.png")
        raw = many.load(tmp_path / "m.png")
        assert raw.dtype == torch.int16
        assert raw.tolist() == [[[0, 255, 399, many.ignore_index]]]
        encoded = many.encode(raw)
        assert encoded.argmax(0)[0, :3].tolist() == [0, 255, 399]
        assert not encoded[..., 3].any()
        assert torch.equal(many.read(many.preview(raw), "preview"), raw)

    @pytest.mark.parametrize("count", [254, 255, 256])
    def test_no_class_is_mistaken_for_unlabelled(self, count):
        condition = MaskCondition(table_of(count))
        ids = np.arange(count, dtype=np.uint16).reshape(1, -1)
        encoded = condition.encode(condition.read(Image.fromarray(ids), "ids"))
        assert torch.equal(encoded[:, 0], torch.eye(count))

    def test_camvid(self, camvid):
        condition = MaskCondition(ClassTable.read(camvid / "classes.json"))
        path = min((camvid / "labels").glob("*.png"))
        raw = condition.load(path)
        assert np.array_equal(raw[0].numpy(), np.asarray(Image.open(path)))  # its ids are 0..10 and 255
        assert torch.equal(condition.read(condition.preview(raw), "preview"), raw)


class TestUnknown:
    def error(self, path) -> str:
        with pytest.raises(ConditionError) as error:
            MASK.load(path)
        assert str(path) in str(error.value)
        return str(error.value)

    def test_ids_are_named_with_their_counts_most_frequent_first(self, tmp_path):
        Image.fromarray(np.array([[5, 9, 9, 9, 0, 7, 255]], np.uint8)).save(tmp_path / "m.png")
        message = self.error(tmp_path / "m.png")
        assert "id 9 on 3 pixels, id 5 on 1 pixel are not in the class table (ids 0, 7, 300)" in message
        assert "classes.json" in message

    def test_colours_are_named_with_their_counts(self, tmp_path):
        colours = COLOURS.copy()
        colours[0, :3] = (1, 200, 3)
        Image.fromarray(colours).save(tmp_path / "m.png")
        message = self.error(tmp_path / "m.png")
        assert "colour (1, 200, 3) on 3 pixels is not in the class table" in message
        assert "anti-aliasing" in message

    def test_a_palette_pictures_wrong_colour_is_named_as_a_colour(self, tmp_path):
        colours = COLOURS.copy()
        colours[1, 1] = (200, 0, 0)
        Image.fromarray(colours).quantize(8).save(tmp_path / "m.png")
        assert "colour (200, 0, 0) on 1 pixel is" in self.error(tmp_path / "m.png")

    def test_what_a_jpeg_made_of_colours_is_counted_and_the_top_few_named(self, tmp_path):
        Image.fromarray(COLOURS).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "m.jpg", quality=30)
        Image.open(tmp_path / "m.jpg").save(tmp_path / "m.png")
        message = self.error(tmp_path / "m.png")
        assert message.count("colour (") == 5
        assert re.search(r"and \d+ more are not in the class table", message)
        assert "PNG" in message

    def test_transparent_unknown_pixels_do_not_count(self, tmp_path):
        image = Image.fromarray(COLOURS).convert("RGBA")
        image.putpixel((0, 0), (9, 9, 9, 0))
        image.putpixel((1, 0), (9, 9, 9, 255))
        image.save(tmp_path / "m.png")
        assert "colour (9, 9, 9) on 1 pixel is" in self.error(tmp_path / "m.png")

    def test_negative_and_huge_ids(self):
        with pytest.raises(ConditionError, match=r"id -1 on 1 pixel, id 70000 on 1 pixel"):
            MASK.read(Image.fromarray(np.array([[-1, 70000, 7]], np.int32)), "ids")

    def test_a_picture_that_cannot_be_a_mask(self):
        with pytest.raises(ConditionError, match="a CMYK image cannot be a mask"):
            MASK.read(Image.new("CMYK", (2, 2)), "m")


class TestTensors:
    def test_one_hot_with_unlabelled_as_zero(self):
        encoded = MASK.encode(torch.from_numpy(INDICES)[None])
        assert encoded.dtype == torch.float32
        assert encoded.shape == (3, 2, 4)
        for (row, column), index in np.ndenumerate(INDICES):
            wanted = [float(index == k) for k in range(3)]
            assert encoded[:, row, column].tolist() == wanted

    def test_batches_encode_as_their_members(self):
        raw = torch.from_numpy(np.stack([INDICES, INDICES[::-1].copy()]))[:, None]
        assert torch.equal(MASK.encode(raw), torch.stack([MASK.encode(one) for one in raw]))

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_null(self, value):
        null = MaskCondition(TABLE, null_value=value).null(2, 4, 5, dtype=torch.bfloat16)
        assert null.shape == (2, 3, 4, 5)
        assert null.dtype == torch.bfloat16
        assert (null == value).all()

    def test_preview_is_read_as_the_same_mask(self):
        raw = torch.from_numpy(INDICES)[None]
        preview = MASK.preview(raw)
        assert np.array_equal(np.asarray(preview), COLOURS)
        assert torch.equal(MASK.read(preview, "preview"), raw)

    def test_flip(self):
        assert np.array_equal(MASK.flip(torch.from_numpy(INDICES)[None])[0], INDICES[:, ::-1])

    @given(st.data())
    @settings(max_examples=200, deadline=None)
    def test_crop_and_resize_is_pils_nearest_to_the_pixel(self, data):
        width, height = data.draw(st.integers(1, 500)), data.draw(st.integers(1, 40))
        box_width, box_height = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
        left = data.draw(st.integers(0, width - box_width))
        top = data.draw(st.integers(0, height - box_height))
        size = data.draw(st.integers(1, 300) | st.tuples(st.integers(1, 300), st.integers(1, 300)))  # height, width
        values = np.arange(width * height).reshape(height, width) % 65521
        raw = torch.from_numpy(values.astype(np.int32))[None]
        image = Image.fromarray(values.astype(np.int32))
        wanted = image.crop((left, top, left + box_width, top + box_height))
        wanted = wanted.resize((size, size) if isinstance(size, int) else size[::-1], Image.Resampling.NEAREST)
        found = MASK.crop_resize(raw, Box(left, top, box_width, box_height), size)
        assert np.array_equal(found[0], np.asarray(wanted))

    @pytest.mark.parametrize("size", [64, 100, 256])
    def test_a_photographs_label_map_keeps_pils_rounding(self, size):
        values = np.random.default_rng(0).integers(0, 255, (360, 480), dtype=np.uint8)
        wanted = Image.fromarray(values).crop((60, 0, 420, 360)).resize((size, size), Image.Resampling.NEAREST)
        found = MASK.crop_resize(torch.from_numpy(values)[None], center_box(480, 360), size)
        assert np.array_equal(found[0], np.asarray(wanted))


class TestConfig:
    def test_round_trip_through_json(self):
        condition = MaskCondition(TABLE, null_value=1.0)
        config = json.loads(json.dumps(condition.to_config()))
        assert config["kind"] == "mask"
        assert condition_from_config(config) == condition

    def test_unknown_kind_names_the_nearest(self):
        with pytest.raises(ConditionError, match=r"r\.yaml: unknown condition 'maks'; did you mean 'mask'\?"):
            condition_from_config({"kind": "maks"}, "r.yaml")

    def test_missing_kind_and_unknown_key(self):
        with pytest.raises(ConditionError, match="missing key 'kind'"):
            condition_from_config({}, "r.yaml")
        config = {**MASK.to_config(), "nul_value": 1.0}
        with pytest.raises(ConditionError, match="unknown key 'nul_value'; did you mean 'null_value'"):
            condition_from_config(config, "r.yaml")

    def test_the_registry_knows_every_kind_by_its_own_name(self):
        assert CONDITIONS["mask"] is MaskCondition
        assert all(condition.kind == kind for kind, condition in CONDITIONS.items())
