"""Preference rates and intervals from votes; other files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from piti.core.errors import UserError
from piti.evaluation.preference.statistics import count_votes, sign_test, wilson
from piti.evaluation.preference.votes import Key, StudyError
from tests.evaluation.preference.studies import save, study, votes_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Key]:
    root = tmp_path_factory.mktemp("study")
    written, key = study(root, 10, ties=True, repeats=3)
    return written.key, key


def test_wilson_is_as_published() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)


def test_the_sign_test_is_the_binomials_tail() -> None:
    assert sign_test(8, 2) == sign_test(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(5, 5) == sign_test(0, 0) == 1
    assert sign_test(0, 6) == 2 / 64
    assert 0 < sign_test(0, 1000) < 1e-300
    assert sign_test(5000, 5100) == pytest.approx(0.325, abs=0.005)


def test_one_rater(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    votes = votes_of(key, 1, lambda k, _: "a" if k < 8 else "b", ["a", "a", "b"])
    found = count_votes([save(tmp_path, 1, votes), path])
    assert (found.rate, found.votes, found.wins_a, found.wins_b, found.ties) == (0.8, 10, 8, 2, 0)
    assert (found.low, found.high) == found.wilson == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert found.interval == "Wilson's, over votes"
    assert found.bootstrap is None
    assert found.p_value == pytest.approx(0.109375)
    assert (found.raters, found.pairs, found.pairs_in_study) == (1, 10, 10)
    assert found.consistency == pytest.approx(2 / 3)
    assert (found.per_rater[0].consistent, found.per_rater[0].repeats) == (2, 3)
    assert found.per_rater[0].seconds == 2.5
    assert found.left == pytest.approx((4 + 1 + 0 + 1 + 1) / 13)  # A lies left in every other pair
    assert "one rater" in found.notes[0]
    assert (found.a, found.b) == (key.a, key.b)
    assert "80.0% of 10 votes" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["rate"] == 0.8
    assert len(found.rows()) == 9
    assert found.rater_rows()[0]["consistent"] == "2 of 3"


def test_ties_are_halves_or_left_out(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    votes = votes_of(key, 1, lambda k, _: "a" if k < 4 else "b" if k < 6 else None)
    file = save(tmp_path, 1, votes)
    halves = count_votes([file, path])
    assert (halves.rate, halves.votes, halves.ties) == (0.6, 10, 4)
    assert (halves.low, halves.high) == wilson(6, 10)
    assert "half a vote" in halves.ties_are
    without = count_votes([file, path], ties_half=False)
    assert (without.rate, without.votes, without.ties, without.pairs) == (pytest.approx(4 / 6), 6, 4, 6)
    assert (without.low, without.high) == wilson(4, 6)
    assert halves.p_value == without.p_value == sign_test(4, 2)
    only = save(tmp_path, 2, votes_of(key, 2, lambda k, _: None))
    assert count_votes([only, path]).rate == 0.5
    with pytest.raises(StudyError, match="no vote states a preference"):
        count_votes([only, path], ties_half=False)


def test_the_bootstrap_draws_raters(made: tuple[Path, Key], tmp_path: Path) -> None:
    """Two raters of opposite minds: of two draws, a quarter are both of one, whatever the pairs."""
    path, key = made
    files = [save(tmp_path, k, votes_of(key, k, lambda _, pair, k=k: "ab"[k])) for k in range(2)]
    found = count_votes([*files, path])
    assert found.rate == 0.5
    assert (found.low, found.high) == found.bootstrap == (0.0, 1.0)
    assert found.wilson == wilson(10, 20)
    assert "bootstrap" in found.interval
    assert found.p_value == 1  # every pair is even
    assert [rater.rate for rater in found.per_rater] == [1.0, 0.0]


def test_the_bootstrap_draws_pairs(made: tuple[Path, Key], tmp_path: Path) -> None:
    """Raters of one mind: the rate is that of a binomial draw of 10 pairs with p = 0.7, however many they are."""
    path, key = made
    files = [save(tmp_path, k, votes_of(key, k, lambda index, _: "a" if index < 7 else "b")) for k in range(6)]
    found = count_votes([*files, path])
    assert found.rate == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx((0.4, 1.0))  # quantiles of the binomial distribution
    assert found.wilson[1] - found.wilson[0] < 0.25  # as if 60 votes were independent
    assert found.p_value == sign_test(7, 3)
    assert count_votes([*files, path]).to_dict() == found.to_dict()


def test_unanimous_votes_get_wilsons_interval(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    files = [save(tmp_path, k, votes_of(key, k, lambda *_: "a")) for k in range(3)]
    found = count_votes([*files, path])
    assert found.bootstrap == (1.0, 1.0)
    assert (found.low, found.high) == wilson(30, 30)
    assert "Wilson" in found.interval


def test_raters_may_answer_different_pairs(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    early = votes_of(key, 1, lambda k, _: "a" if k < 2 else "-")
    late = votes_of(key, 2, lambda k, _: "b" if k >= 9 else "-")
    found = count_votes([save(tmp_path, 1, early), save(tmp_path, 2, late), path])
    assert (found.rate, found.votes, found.pairs) == (pytest.approx(2 / 3), 3, 3)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert any("answered 2 of 10 pairs" in note for note in found.notes)


def test_raters_who_do_not_look_are_named(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    votes = votes_of(key, 1, lambda k, _: "ab"[k % 2], ["b", "a", "b"])  # always the left picture
    votes["name"] = "[bold]Eve\x1b[31m"
    found = count_votes([save(tmp_path, 1, votes), path])
    assert found.per_rater[0].left == found.per_rater[0].decided == 13
    assert any("chose the left picture 13 of 13 times" in note for note in found.notes)
    assert any("0 of 3 repeated pairs" in note for note in found.notes)
    assert "\x1b" not in "".join(found.notes) + found.rater_rows()[0]["rater"]
    assert found.rater_rows()[0]["rater"].startswith("[bold]Eve")  # printed as text


def test_one_name_in_two_files_is_told(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    files = [save(tmp_path, k, votes_of(key, k, lambda *_: "a") | {"name": "Ada"}) for k in range(2)]
    assert any(note.startswith("Ada: several files") for note in count_votes([*files, path]).notes)


def test_the_key_is_found_beside_the_votes_or_given(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    sent = tmp_path / "sent"
    sent.mkdir()
    save(sent, 1, votes_of(key, 1, lambda *_: "a"))
    with pytest.raises(StudyError, match=rf"key of study {key.study} is missing"):
        count_votes([sent])
    assert count_votes([sent], key=path).rate == 1
    (sent / "broken.key.json").write_text("{")
    with pytest.raises(StudyError, match=r"broken\.key\.json: is not JSON"):
        count_votes([sent])  # a folder is read whole
    (sent / "other.key.json").write_text(path.read_text())
    assert count_votes([sent / "votes-1.json"]).rate == 1
    with pytest.raises(StudyError, match=r"contains no votes-….json"):
        count_votes([tmp_path])
    with pytest.raises(StudyError, match="no votes to count"):
        count_votes([path])


def test_of_a_folder_renamed_votes_count_too(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    sent = tmp_path / "sent"
    sent.mkdir()
    save(sent, 1, votes_of(key, 1, lambda *_: "a"))
    save(sent, 2, votes_of(key, 2, lambda *_: "b")).rename(sent / "from Bob.json")
    (sent / "result.json").write_text('{"rate": 0.5}')
    (sent / "notes.json").write_text("none")
    found = count_votes([sent], key=path)
    assert (found.raters, found.rate) == (2, 0.5)


def test_files_of_one_rater_are_refused(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    one = save(tmp_path, 1, votes_of(key, 7, lambda *_: "a"))
    part = save(tmp_path, 2, votes_of(key, 7, lambda k, _: "a" if k < 4 else "-"))
    with pytest.raises(StudyError, match=r"votes-1\.json and .*votes-2\.json: are of one rater .*\(10, 4\)"):
        count_votes([one, part, path])
    with pytest.raises(StudyError, match="given twice"):
        count_votes([one, one, path])


def change(values: dict[str, Any], where: tuple[str | int, ...], value: object) -> None:
    for step in where[:-1]:
        values = values[step]  # type: ignore[assignment, index]
    values[where[-1]] = value  # type: ignore[index]


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("study",), "0" * 16, "belongs to study 0000000000000000"),
        (("rater",), "me", "'rater' = 'me'"),
        (("format",), "piti votes 2", "neither a votes file nor a study's key"),
        (("votes",), [], "'votes'"),
        (("votes", 0, "pair"), "0" * 12, "no pair 000000000000"),
        (("votes", 0, "chosen"), "0" * 12, "neither the left nor the right"),
        (("votes", 0, "left"), "nonsense", "votes.0.left"),
        (("votes", 0, "seconds"), float("nan"), "votes.0.seconds"),
        (("votes", 0, "seconds"), -1, "votes.0.seconds"),
        (("votes", 0, "note"), "hello", "unknown key 'votes.0.note'"),
        (("votes", 0, "repeat"), True, "repeated without"),
        (("votes", 10, "repeat"), False, "answered twice"),
    ],
)
def test_changed_files_are_refused(
    made: tuple[Path, Key], tmp_path: Path, where: tuple[str | int, ...], value: object, said: str
) -> None:
    path, key = made
    values = votes_of(key, 1, lambda *_: "a", ["a"])
    change(values, where, value)
    file = save(tmp_path, 1, values)
    with pytest.raises(UserError) as error:
        count_votes([file, path])
    assert said in str(error.value)
    assert str(file) in str(error.value)


def test_a_vote_for_another_pairs_picture_is_refused(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    values = votes_of(key, 1, lambda *_: "a")
    values["votes"][0] |= {"left": key.pairs[1].a, "chosen": key.pairs[1].a}
    with pytest.raises(StudyError, match="does not consist of"):
        count_votes([save(tmp_path, 1, values), path])


def test_no_preference_needs_a_study_that_allows_it(tmp_path: Path) -> None:
    written, key = study(tmp_path, 3)
    file = save(tmp_path, 1, votes_of(key, 1, lambda k, _: None if k == 1 else "a"))
    with pytest.raises(StudyError, match="does not allow"):
        count_votes([file, written.key])


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b'{"format": 3}', b"<!doctype html>"]
)
def test_what_is_no_votes_file(made: tuple[Path, Key], tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "votes-1.json"
    file.write_bytes(data)
    with pytest.raises(StudyError, match=r"votes-1\.json: is "):
        count_votes([file, made[0]])


def test_every_problem_is_told_at_once(made: tuple[Path, Key], tmp_path: Path) -> None:
    (tmp_path / "votes-1.json").write_text("{")
    with pytest.raises(StudyError, match=r"(?s)votes-1\.json.*votes-2\.json: cannot be read \(No such file"):
        count_votes([tmp_path / "votes-1.json", tmp_path / "votes-2.json", made[0]])


def test_a_byte_order_mark_does_no_harm(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    file = tmp_path / "votes-1.json"
    file.write_text(json.dumps(votes_of(key, 1, lambda *_: "a")), encoding="utf-8-sig")
    assert count_votes([file, path]).rate == 1


def test_a_changed_key_is_refused(made: tuple[Path, Key], tmp_path: Path) -> None:
    path, key = made
    values = key.to_dict()
    first = values["pairs"][0]
    first["a"], first["b"] = first["b"], first["a"]
    changed = tmp_path / "study.key.json"
    changed.write_text(json.dumps(values))
    file = save(tmp_path, 1, votes_of(key, 1, lambda *_: "a"))
    with pytest.raises(UserError, match="was changed"):
        count_votes([file, changed])
    other, _ = study(tmp_path / "other", 3)
    with pytest.raises(StudyError, match="keys of different studies"):
        count_votes([file, path, other.key])
    with pytest.raises(StudyError, match="count it with its own key"):
        count_votes([file, other.key])
