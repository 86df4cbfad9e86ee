"""Labels of a network matched with the classes of masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from piti.evaluation.per_condition import AlignmentError
from piti.evaluation.segmentation import OTHER, match_labels, read_aliases


def test_case_spaces_and_marks_do_not_matter() -> None:
    found = match_labels(["Traffic Sign", "SKY ", "side_walk", "wall-brick"], ["sky", "traffic_sign", "Wall brick"])
    assert found.indices == (1, 0, OTHER, 2)
    assert found.other_labels == ("side_walk",)
    assert found.unnamed_classes == ()
    assert found(torch.tensor([[0, 1], [2, 3]])).tolist() == [[1, 0], [-1, 2]]


def test_synonyms_count_after_whole_names() -> None:
    found = match_labels(["building;edifice", "door", "Car, auto"], ["edifice", "screen door; door", "automobile;auto"])
    assert found.indices == (0, 1, 2)
    found = match_labels(["house", "house; building"], ["house", "building; house"])
    assert found.indices == (0, 0)
    assert found.unnamed_classes == ("building; house",)


def test_aliases_rename_and_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "aliases.json"
    path.write_text(json.dumps({"vegetation": "Tree", "terrain": "tree", "road": None}))
    found = match_labels(["Vegetation", "terrain", "road", "sky"], ["sky", "tree", "road"], read_aliases(path))
    assert found.indices == (1, 1, OTHER, 0)
    assert found.unnamed_classes == ("road",)


@pytest.mark.parametrize(
    ("aliases", "said"),
    [
        ({"skies": "sky"}, "no label 'skies'; did you mean 'sky'"),
        ({"sky": "rood"}, "'rood', which is not a class.*mean 'road'"),
    ],
)
def test_unknown_names_in_aliases(aliases: dict[str, str], said: str) -> None:
    with pytest.raises(AlignmentError, match=said):
        match_labels(["sky", "street"], ["sky", "road"], aliases)


def test_nothing_that_matches_is_an_error_that_shows_both() -> None:
    with pytest.raises(AlignmentError, match=r"net: none of its labels \(LABEL_0, LABEL_1\).*\(sky, road\).*aliases"):
        match_labels(["LABEL_0", "LABEL_1"], ["sky", "road"], None, "net")
    with pytest.raises(AlignmentError, match="none of its labels"):
        match_labels(["sky"], ["sky"], {"sky": None})


def test_classes_that_cannot_be_told_apart() -> None:
    with pytest.raises(AlignmentError, match="'side walk' and 'Side_Walk' differ only in case"):
        match_labels(["road"], ["side walk", "road", "Side_Walk"])


@pytest.mark.parametrize("text", ["{", "[1]", '{"sky": 3}'])
def test_a_file_that_holds_no_aliases(tmp_path: Path, text: str) -> None:
    path = tmp_path / "aliases.json"
    path.write_text(text)
    with pytest.raises(AlignmentError, match=r"aliases\.json: (cannot be read|expected)"):
        read_aliases(path)
    with pytest.raises(AlignmentError, match="check the path"):
        read_aliases(tmp_path / "none.json")
