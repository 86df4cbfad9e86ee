"""Formats of class tables."""

from __future__ import annotations

import json

import pytest

from piti.conditions import ClassTable, ConditionError, MaskCondition, bit_colours, condition_from_config

SKY = {"id": 0, "name": "sky", "color": [1, 2, 3]}
ROAD = {"id": 1, "name": "road", "color": [4, 5, 6]}


def read(folder, values, encoding="utf-8"):
    (folder / "classes.json").write_text(json.dumps(values), encoding=encoding)
    return ClassTable.read(folder / "classes.json")


class TestForms:
    @pytest.mark.parametrize(
        "values",
        [
            ["sky", "road"],
            {"classes": ["sky", "road"]},
            {"classes": {"0": "sky", "1": "road"}},
            {"0": "sky", "1": "road"},
            {"sky": 0, "road": 1},
            [{"name": "sky"}, {"name": "road"}],
            {"classes": [{"id": 0, "name": "sky"}, {"id": 1, "name": "road"}]},
            {"info": {}, "categories": [{"id": 0, "name": "sky", "supercategory": "x"}, {"id": 1, "name": "road"}]},
        ],
    )  # fmt: skip
    def test_names_are_enough(self, tmp_path, values):
        table = read(tmp_path, values)
        assert (table.names, table.ids, table.ignore) == (("sky", "road"), (0, 1), None)
        assert table.colours == bit_colours(2)
        assert table.reading == "ids"  # nobody saved masks in colours that were chosen here

    def test_cocos_categories_keep_their_numbers(self, tmp_path):
        values = {"categories": [{"id": 7, "name": "sky", "isthing": 0, "color": [1, 2, 3]}, {**ROAD, "id": 3}]}
        table = read(tmp_path, values)
        assert table.ids == (7, 3)
        assert table.colours == ((1, 2, 3), (4, 5, 6))
        assert table.reading is None

    def test_what_is_unlabelled_is_an_id_only_where_it_is_given(self, tmp_path):
        assert read(tmp_path, {"classes": ["sky", "road"], "ignore": 255}).ignore == 255

    @pytest.mark.parametrize("text", ["#010203", "010203", "#010203ff", "rgb(1, 2, 3)"])
    def test_colours_as_texts(self, tmp_path, text):
        assert read(tmp_path, {"classes": [{**SKY, "color": text}, ROAD]}).colours[0] == (1, 2, 3)

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
    def test_a_byte_order_mark_is_no_mistake(self, tmp_path, encoding):
        assert read(tmp_path, {"classes": [SKY, ROAD]}, encoding).names == ("sky", "road")

    def test_the_key_that_decides_how_masks_are_read(self, tmp_path):
        assert read(tmp_path, {"classes": [SKY, ROAD], "reading": "colors"}).reading == "colours"
        with pytest.raises(ConditionError, match="reading"):
            read(tmp_path, {"classes": [SKY, ROAD], "reading": "both"})


class TestMistakes:
    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
    def test_utf_16_is_named(self, tmp_path, encoding):
        with pytest.raises(ConditionError, match=r"classes\.json: .*UTF-16.*UTF-8"):
            read(tmp_path, {"classes": [SKY, ROAD]}, encoding)

    def test_another_encoding_is_named(self, tmp_path):
        (tmp_path / "classes.json").write_bytes('["straße"]'.encode("latin-1"))
        with pytest.raises(ConditionError, match="not in UTF-8"):
            ClassTable.read(tmp_path / "classes.json")

    def test_a_name_that_stands_twice_is_named(self, tmp_path):
        (tmp_path / "classes.json").write_text('{"sky": 0, "road": 1, "sky": 2}')
        with pytest.raises(ConditionError, match=r"classes\.json: .*'sky' occurs twice.*; keep or rename one"):
            ClassTable.read(tmp_path / "classes.json")

    @pytest.mark.parametrize("color", ["grün", [1, 2], [0.5, 0.5, 0.5], 7])
    def test_what_is_no_colour_is_said_in_one_line(self, tmp_path, color):
        classes = [{"id": k, "name": str(k), "color": color} for k in range(59)]
        with pytest.raises(ConditionError, match=r"classes\.0\.color = .* \(and 58 more\) .*\[r, g, b\]") as error:
            read(tmp_path, {"classes": classes})
        assert "\n" not in str(error.value)

    def test_the_same_mistake_in_many_classes_is_one_line(self, tmp_path):
        classes = [SKY, *({"id": k, "name": str(k)} for k in range(1, 60))]
        with pytest.raises(ConditionError, match=r"missing key 'classes\.1\.color' \(and in 58 more\)") as error:
            read(tmp_path, {"classes": classes})
        assert str(error.value).count("\n") == 1

    def test_no_file_says_what_to_write(self, tmp_path):
        with pytest.raises(ConditionError, match=r'list the classes .*\["sky", "road"\]'):
            ClassTable.read(tmp_path / "classes.json")

    def test_an_empty_list(self, tmp_path):
        for values in ([], {"classes": []}, {"categories": []}):
            with pytest.raises(ConditionError, match="'classes' is empty"):
                read(tmp_path, values)


def test_the_reading_is_saved_only_where_it_is_decided_and_says_nothing_of_networks(tmp_path):
    plain, decided = (
        read(tmp_path, {"classes": [SKY, ROAD]}),
        read(tmp_path, {"classes": [SKY, ROAD], "reading": "ids"}),
    )
    assert "reading" not in MaskCondition(plain).to_config()["classes"]
    assert condition_from_config(MaskCondition(decided).to_config()) == MaskCondition(decided)
    assert MaskCondition(plain).reads_like(MaskCondition(decided))
