"""`piti evaluate`: its options and errors. Measures are tested in tests/evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from piti.cli.evaluate import new_spelling
from tests.cli.running import invoked, misspelt, mistake

COMMANDS = ["images", "model", "study", "votes"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("made --real photos --seed 1", "images made --real photos --seed 1"),
        ("--real photos made", "images --real photos made"),
        ("--model street --data d --num 2", "model street --data d --num 2"),
        ("--data d --model=runs/a=b", "model --data d runs/a=b"),
        ("--study a b --out s.html", "study a b --out s.html"),
        ("--votes a.json --votes b.json c.json", "votes a.json b.json c.json"),
        ("images made", "images made"),
        ("model street --upsampler other", "model street --upsampler other"),
        ("--help", "--help"),
        ("imagse made", "imagse made"),  # a misspelt command, of which the nearest is named
        ("", ""),
    ],
)
def test_old_spellings_mean_the_new(old: str, new: str) -> None:
    assert new_spelling(old.split(), COMMANDS) == new.split()


def test_a_folder_is_no_misspelt_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").mkdir()
    monkeypatch.chdir(tmp_path)
    assert new_spelling(["image", "--seed", "1"], COMMANDS) == ["images", "image", "--seed", "1"]


def test_old_spellings_are_hidden() -> None:
    said = invoked("evaluate", "--help").output
    assert "images" in said
    assert "votes" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("images one --labels nowhere", "name the masks' classes with --classes"),
        ("images one --classes x.json", "--classes has no effect without --labels"),
        ("images one --perceptual-weights x", "--perceptual-weights has no effect without --perceptual"),
        ("images one --perceptual vgg18", "vgg19"),
        ("one --aliases x.json", "--aliases has no effect without --segmenter"),
    ],
)
def test_mistakes(arguments: str, said: str) -> None:
    assert said in mistake("evaluate", *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("images", "Missing argument"),
        ("images made --num 2", "No such option: --num"),
        ("images made --segmentr x", "--segmenter)"),
        ("model street", "Missing option '--data'"),
        ("model street --data d --labels l", "No such option: --labels"),
        ("made --model street --data d", "unexpected extra argument"),
        ("imagse made", "Did you mean 'images'?"),
    ],
)
def test_misspelt(arguments: str, said: str) -> None:
    assert said in misspelt("evaluate", *arguments.split())
