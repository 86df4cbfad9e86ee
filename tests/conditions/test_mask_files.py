"""Reading of mask files: ids or colours, in all image modes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from piti.conditions import ClassTable, ConditionError, MaskCondition
from piti.conditions.mirroring import mirrored_names, one_sided, said_of_mirroring

BINARY = ClassTable(names=("background", "lesion"), ids=(0, 1), colours=((0, 0, 0), (255, 255, 255)), ignore=255)
SHAPE = np.array([[0, 0, 1], [0, 1, 0]], np.uint8)
HAIR = ClassTable(
    names=("bg", "hair", "face"), ids=(0, 1, 2), colours=((255, 255, 255), (0, 0, 0), (255, 200, 150)), ignore=255
)


def values(condition, image, source="m"):
    return condition.read(image, source)[0].tolist()


def paletted(indices, *colours):
    image = Image.fromarray(np.asarray(indices, np.uint8), "L").convert("P")
    image.putpalette([value for colour in colours for value in colour])
    return image


class TestBlackAndWhite:
    """Masks of 0 and 255 where white is a class and 255 is ignored."""

    def test_one_bit_holds_no_255_and_is_read(self):
        assert values(MaskCondition(BINARY), Image.fromarray(SHAPE * 255).convert("1")) == SHAPE.tolist()

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
    @pytest.mark.parametrize("shape", [SHAPE, np.ones_like(SHAPE)])
    def test_what_is_not_is_refused_with_both_readings_and_the_key(self, mode, shape):
        image = Image.fromarray(shape * 255).convert(mode)
        with pytest.raises(ConditionError, match=r"255 is the id of unlabelled pixels.* colour of 'lesion'.*reading"):
            MaskCondition(BINARY).read(image, "m")

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
    def test_the_key_makes_every_mode_the_same(self, mode):
        decided = MaskCondition(BINARY.model_copy(update={"reading": "colours"}))
        assert values(decided, Image.fromarray(SHAPE * 255).convert(mode)) == SHAPE.tolist()

    @pytest.mark.parametrize("mode", ["L", "P", "RGB"])
    def test_ids_of_0_and_1_need_no_key(self, mode):
        assert values(MaskCondition(BINARY), Image.fromarray(SHAPE).convert(mode)) == SHAPE.tolist()


class TestPalettes:
    def test_indices_that_are_also_known_colours_are_refused(self):
        image = paletted([[0, 1]], (0, 0, 0), (255, 200, 150))
        with pytest.raises(ConditionError, match=r"1 is the id of 'hair', or the colour of 'face'"):
            MaskCondition(HAIR).read(image, "m")
        assert values(MaskCondition(HAIR, reading="ids"), image) == [[0, 1]]
        assert values(MaskCondition(HAIR, reading="colours"), image) == [[1, 2]]

    def test_a_reading_that_does_not_fit_is_an_error_in_that_reading(self):
        image = paletted([[0, 7]], (0, 0, 0), *[(9, 9, 9)] * 6, (255, 200, 150))
        with pytest.raises(ConditionError, match="id 7 on 1 pixel"):
            MaskCondition(HAIR, reading="ids").read(image, "m")
        assert values(MaskCondition(HAIR), image) == [[1, 2]]

    def test_an_id_map_saved_as_rgb_with_one_id_is_refused_alone(self):
        with pytest.raises(ConditionError, match=r"0 is the id of 'bg'.*'hair'"):
            MaskCondition(HAIR).read(Image.new("RGB", (2, 1)), "m")


class TestRgbOfGreys:
    """What RGB pictures of greys hold is no surer than what grey pictures hold."""

    GREYS = ClassTable(names=("a", "b", "c"), ids=(1, 2, 3), colours=((1, 1, 1), (3, 3, 3), (2, 2, 2)), ignore=255)

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
    def test_what_fits_both_ways_is_refused_with_both(self, mode):
        image = Image.fromarray(np.array([[1, 2], [3, 3]], np.uint8)).convert(mode)
        with pytest.raises(ConditionError, match=r"3 is the id of 'c', or the colour of 'b'.*reading"):
            MaskCondition(self.GREYS).read(image, "m")
        assert values(MaskCondition(self.GREYS, reading="ids"), image) == [[0, 1], [2, 2]]
        assert values(MaskCondition(self.GREYS, reading="colours"), image) == [[0, 2], [1, 1]]

    def test_blank_files_are_read_as_the_others_of_their_set(self, tmp_path):
        table = ClassTable(names=("sky", "road"), ids=(0, 1), colours=((9, 9, 9), (200, 0, 0)))
        blank, ids = np.zeros((2, 2), np.uint8), np.array([[0, 1], [1, 1]], np.uint8)
        colours = np.array(table.colours, np.uint8)[ids]
        for name, pixels, mode in [("i", ids, "RGB"), ("bi", blank, "RGB"), ("c", colours, "RGB"), ("bc", blank, "L")]:
            Image.fromarray(pixels).convert(mode).save(tmp_path / f"{name}.png")
        for names, blank_is in [(("i", "bi"), 0), (("c", "bi"), 255), (("c", "bc"), 255), (("bc",), 0), (("bi",), 255)]:
            files = [tmp_path / f"{name}.png" for name in names]
            settled, _ = MaskCondition(table).settled(files)
            assert settled.load(files[-1]).unique().tolist() == [blank_is], names

    def test_a_set_of_both_is_said(self, tmp_path):
        table = ClassTable(names=("sky", "road"), ids=(0, 1), colours=((9, 9, 9), (200, 0, 0)))
        files = [tmp_path / "a.png", tmp_path / "b.png"]
        Image.fromarray(np.array([[0, 1]], np.uint8)).save(files[0])
        Image.fromarray(np.array([[[200, 0, 0], [9, 9, 9]]], np.uint8)).save(files[1])
        settled, notes = MaskCondition(table).settled(files)
        assert notes == ["1 masks hold ids and 1 colours: each file is read by its contents"]
        assert [settled.load(file)[0].tolist() for file in files] == [[[0, 1]], [[1, 0]]]

    def test_numbers_of_one_kind_of_picture_are_not_read_both_ways(self, tmp_path):
        """0 and 1 as ids, and the same picture as 0 and 255, which are the colours of the other two classes."""
        table = ClassTable(names=("road", "sky"), ids=(0, 1), colours=((255, 255, 255), (0, 0, 0)), ignore=None)
        pixels = np.array([[0, 1]], np.uint8)
        for name, factor in (("a", 1), ("b", 255)):
            Image.fromarray(pixels * factor).save(tmp_path / f"{name}.png")
        said = r"b\.png: of these masks 1 hold ids and 1 class colours, this one colours.*a value would mean two"
        with pytest.raises(ConditionError, match=said):
            MaskCondition(table).settled([tmp_path / "a.png", tmp_path / "b.png"])


class TestTransparency:
    @pytest.mark.parametrize("clear", [0, bytes([0, 255, 255])])
    def test_a_transparent_index_is_unlabelled_by_either_reading(self, tmp_path, clear):
        image = paletted([[0, 1, 2]], (9, 9, 9), (8, 8, 8), (7, 7, 7))
        image.save(tmp_path / "m.png", transparency=clear)
        assert MaskCondition(HAIR).load(tmp_path / "m.png")[0].tolist() == [[255, 1, 2]]

    @pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
    def test_a_transparent_number_is_unlabelled(self, tmp_path, mode):
        dtype = np.uint16 if mode == "I;16" else np.uint8
        image = Image.fromarray(np.array([[0, 1, 2]], dtype))
        image = image.convert(mode) if mode == "RGB" else image
        image.save(tmp_path / "m.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
        assert MaskCondition(HAIR).load(tmp_path / "m.png")[0].tolist() == [[255, 1, 2]]


class TestExactFiles:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("m.jpg", {}),
            ("m.png", {"format": "JPEG"}),  # by what it is, not by its name
            ("m.webp", {"lossless": False}),
            ("m.avif", {}),
            ("m.tif", {"compression": "jpeg"}),
        ],
    )
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_lossy_files_are_refused_with_the_reason(self, tmp_path, name, settings, mode):
        Image.fromarray(np.zeros((8, 8), np.uint8)).convert(mode).save(tmp_path / name, **settings)
        with pytest.raises(ConditionError, match=r"m\.\w+: is an? .*, a lossy format, which changes ids"):
            MaskCondition(HAIR).load(tmp_path / name)
        with pytest.raises(ConditionError, match="lossy"), Image.open(tmp_path / name) as opened:
            MaskCondition(HAIR).read(opened, "m")

    @pytest.mark.parametrize("name", ["m.webp", "m.png", "m.tif", "m.bmp"])
    def test_lossless_files_are_read(self, tmp_path, name):
        image = Image.fromarray(np.array([[255, 200, 150], [0, 0, 0]], np.uint8)[None])
        image.save(tmp_path / name, lossless=True)  # which WebP alone heeds
        assert MaskCondition(HAIR).load(tmp_path / name)[0].tolist() == [[2, 1]]


class TestMirroring:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("l_eye", "r_eye"),
            ("left_arm", "right_arm"),
            ("arm-left", "arm-right"),
            ("LeftEar", "RightEar"),
            ("eye (left)", "eye (right)"),
            ("lefthand", "righthand"),
            ("sinister", "dexter"),
            ("ear.sinister", "ear.dexter"),
            ("left", "right"),
            ("R brow", "L brow"),
        ],
    )
    def test_pairs_by_name(self, one, other):
        assert mirrored_names(["skin", one, "mouth", other]) == [(one, other)]

    @pytest.mark.parametrize(
        "names", [["l", "r"], ["light", "right"], ["left_arm", "right_leg"], ["copyright", "copy"]]
    )
    def test_other_names_are_no_pairs(self, names):
        assert mirrored_names(names) == []

    def test_what_has_one_side_only(self):
        assert one_sided(["left_arm", "l_eye", "r_eye", "leg"]) == ["left_arm"]
        assert one_sided(["copyright", "left-turn lane"]) == ["left-turn lane"]

    def test_what_may_be_left_and_right_is_said_and_not_exchanged(self):
        names = ["lbrow", "rbrow", "skin", "leftEye", "rightEye"]
        assert mirrored_names(names) == [("leftEye", "rightEye")]
        assert "lbrow and rbrow: not swapped" in said_of_mirroring(names)[-1]
        assert len(said_of_mirroring(["l_eye", "r_eye"])) == 1

    def test_flip_exchanges_and_twice_is_nothing(self):
        table = ClassTable(names=("skin", "l_eye", "r_eye"), ids=(0, 1, 2), colours=((1, 1, 1), (2, 2, 2), (3, 3, 3)))
        mask = MaskCondition(table)
        raw = mask.read(Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)), "m")
        assert mask.flip(raw)[0].tolist() == [[255, 1, 2, 0]]
        assert mask.flip(mask.flip(raw)).equal(raw)
