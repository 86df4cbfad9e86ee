"""Structured errors: one text for three interfaces, and pickling."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from piti.conditions import ConditionError
from piti.core.distributed import FailedElsewhere, together
from piti.core.errors import Message, UserError, first_line, option, spelled, text_of, with_article
from piti.data.batches import BatchStream, TrainingBatch, loader
from piti.data.problems import BadSample, Skipped


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_one_text_reads_in_python_and_on_the_command_line() -> None:
    error = UserError(
        "this model makes 64 px", remedy=f"give 16 to 256, or leave {option('base_only')} out", option="size", value=5
    )
    assert str(error) == "size 5: this model makes 64 px; give 16 to 256, or leave base_only out"
    assert spelled(error.text(), flag) == ("--size 5: this model makes 64 px; give 16 to 256, or leave --base-only out")
    assert (error.option, error.value) == ("size", 5)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "is wrong"),
        ({"remedy": "mend it"}, "is wrong; mend it"),
        ({"source": Path("a.png")}, "a.png: is wrong"),
        ({"option": "num"}, "num: is wrong"),
        ({"option": "num", "value": 0}, "num 0: is wrong"),
        ({"source": "a.png", "option": "num", "value": 0, "remedy": "mend it"}, "a.png: num 0: is wrong; mend it"),
        ({"local_remedy": "edit a.json", "remedy": "mend it"}, "is wrong; edit a.json, or mend it"),
        ({"local_remedy": "edit a.json"}, "is wrong; edit a.json"),
    ],
)
def test_the_parts_make_one_text(parts: dict[str, Any], text: str) -> None:
    assert str(UserError("is wrong", **parts)) == text


def test_who_has_not_the_files_hears_no_remedy_that_needs_them() -> None:
    error = UserError("unknown id 7", local_remedy="add it to classes.json", remedy="relabel these pixels")
    assert error.text(local=False) == "unknown id 7; relabel these pixels"
    assert UserError("unknown id 7", local_remedy="add it to classes.json").text(local=False) == "unknown id 7"


def test_foreign_words_are_no_options() -> None:
    foreign = "a--b.png: `weights_only` <size> --size"
    assert spelled(text_of(ValueError(foreign)), flag) == foreign


def test_a_message_reads_as_it_is_and_spells_options_for_others() -> None:
    note = Message(f"{option('base_only')} is off")
    assert (note, spelled(text_of(note), flag)) == ("base_only is off", "--base-only is off")
    assert pickle.loads(pickle.dumps(note)).marked == note.marked


def test_an_error_inside_another_text_keeps_its_options() -> None:
    inner = UserError("already exists", remedy=f"add {option('overwrite')}")
    outer = UserError(f"seed 0: {text_of(inner)}")
    assert spelled(outer.text(), flag) == "seed 0: already exists; add --overwrite"


def test_an_error_is_passed_on_in_its_parts() -> None:
    error = ConditionError.like(UserError("is empty", remedy="say more", option="text"))
    assert isinstance(error, ConditionError)
    assert (str(error), error.option, error.remedy) == ("text: is empty; say more", "text", "say more")
    assert str(error.about("a.txt").about("b")) == "b: a.txt: text: is empty; say more"


@pytest.mark.parametrize(
    "error",
    [
        ConditionError("is wrong", remedy="mend it", local_remedy="or so", option="size", value=5, source="a.png"),
        BadSample(Skipped("a", "is wrong")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_their_parts_when_pickled(error: UserError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


class Failing(BatchStream):
    """A stream without batches."""

    def __init__(self) -> None: ...

    def __getitem__(self, step: int) -> TrainingBatch:
        raise ConditionError("is wrong", remedy=f"leave {option('text')} out", option="size", value=step)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_keep_their_parts_on_their_way_from_a_worker(workers: int) -> None:
    with pytest.raises(ConditionError) as caught:
        next(loader(Failing(), 3, 4, workers))
    assert spelled(caught.value.text(), flag) == "--size 3: is wrong; leave --text out"
    assert (caught.value.option, caught.value.value) == ("size", 3)


@pytest.mark.parametrize(
    ("noun", "article"),
    [
        ("EulerDiscreteScheduler", "an"),
        ("AutoencoderTiny", "an"),
        ("LCMScheduler", "an"),
        ("TCDScheduler", "a"),
        ("UniPCMultistepScheduler", "a"),
        ("LatentConsistencyModelPipeline", "a"),
        ("StableDiffusionPipeline", "a"),
    ],
)
def test_an_article_before_a_name(noun: str, article: str) -> None:
    assert with_article(noun) == f"{article} {noun}"


def test_the_process_that_fails_keeps_the_parts_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from either of two processes, of which the second fails."""

    def gathered(failed: list[bool], own: bool) -> None:
        assert own == (dist.get_rank() == 1)
        failed[:] = [False, True]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gathered)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    with pytest.raises(FailedElsewhere, match="process 1 failed"), together():
        pass
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    with pytest.raises(UserError) as caught, together():
        raise UserError("is wrong", remedy="give 1", option="num", value=0)
    error = caught.value
    assert (error.option, error.value, error.remedy) == ("num", 0, "give 1")


@pytest.mark.parametrize(
    ("said", "line"), [("one\ntwo", "one"), ("\n  one\ntwo", "one"), (" \n", "OSError"), ("", "OSError")]
)
def test_what_a_library_says_in_its_first_line(said: str, line: str) -> None:
    assert first_line(OSError(said)) == line
