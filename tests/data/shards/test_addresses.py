"""Addresses of shards: existing paths are used literally, others are expanded."""

from __future__ import annotations

from pathlib import Path

import pytest

from piti.data.problems import DataError
from piti.data.shards.sources import expanded

ODD = ("sh [v2] {a,b}", "{000..002}", "what*?", "[x]", "a{b")


def files(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("name", ODD)
def test_a_path_that_exists_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    folder = files(tmp_path / name, "s-0.tar", "s-1.tar")
    tars = [str(folder / f"s-{k}.tar") for k in range(2)]
    assert expanded(str(folder), "shards") == tars
    assert expanded(tars[0], "shards") == tars[:1]
    assert expanded(f"{folder}/s-{{0..1}}.tar", "shards") == tars
    assert expanded(f"{folder}/s-*.tar", "shards") == tars
    assert expanded(f"{folder}/s-{{1,0}}.tar", "shards") == tars[::-1]
    (folder / "shards.json").touch()
    assert expanded(str(folder), "shards") == [str(folder / "shards.json")]


def test_a_file_of_a_name_with_braces_is_taken_as_it_is(tmp_path: Path) -> None:
    files(tmp_path, "s{0,1}.tar", "s0.tar", "s1.tar")
    assert expanded(str(tmp_path / "s{0,1}.tar"), "shards") == [str(tmp_path / "s{0,1}.tar")]


def test_what_does_not_exist_is_expanded_and_named(tmp_path: Path) -> None:
    one, other = files(tmp_path / "a", "x.tar"), files(tmp_path / "b", "y.tar")
    found = expanded(f"{tmp_path}/{{a,b}}", "shards")
    assert found == [str(one / "x.tar"), str(other / "y.tar")]
    with pytest.raises(DataError, match=r"shards: .*/c: no such file"):
        expanded(f"{tmp_path}/{{a,c}}", "shards")
    with pytest.raises(DataError, match="no such file"):
        expanded("x" * 5000, "shards")
