"""Experiment trackers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from piti.training import RunError, read_recipe, train
from piti.training.outputs import TRACKERS
from piti.training.recipe import Recipe, SpecError
from piti.training.run_folder import RunFolder
from piti.training.trackers import NAMES_FILE, TensorBoard, Trackers, open_tracker
from tests.training.test_loop import recipe_of

ONE_STAGE = [{"name": "joint", "steps": 2}]


class Wandb(SimpleNamespace):
    """What accelerate calls of the package of that name, and what it was called with."""

    def __init__(self) -> None:
        super().__init__(config=SimpleNamespace(update=self._update), Image=lambda image: image.size)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.told: dict[str, Any] = {}
        self.finished = 0
        self.broken = False

    def _update(self, values: Mapping[str, Any], **_: Any) -> None:
        self.told |= values

    def init(self, **options: Any) -> Wandb:
        if options.get("mode") == "wrong":
            raise ValueError("mode must be one of these\nand more")
        self.begun.append(options)
        return self

    def log(self, values: Mapping[str, Any], step: int) -> None:
        if self.broken:
            raise ConnectionError("the network is gone")
        self.logged.append((step, dict(values)))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return fake


def test_the_names_are_accelerates() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(TRACKERS) | {"tensorboard"} == set(LOGGER_TYPE_TO_CLASS)


def test_tensorboard_where_asked_for(tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(recipe_of(tiny_data, stages=ONE_STAGE, tensorboard=True), tmp_path / "run")
    (events,) = (tmp_path / "run/tensorboard").iterdir()
    for name in (b"validation_loss", b"images_per_second", b"preview"):
        assert name in events.read_bytes()


def test_tensorboard_forgets_what_a_resumed_run_takes_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for after, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        board = TensorBoard(tmp_path, after)
        for step in steps:
            board.log(step, {"loss": 0.5})
        board.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [one.step for one in read.Scalars("loss")] == [1, 2, 3, 4, 5]


def test_a_tracker_hears_recipe_numbers_and_previews_and_goes_on_with_its_run(
    tiny_data: Path, tmp_path: Path, wandb: Wandb
) -> None:
    out = tmp_path / "mine"
    train(recipe_of(tiny_data, stages=ONE_STAGE, trackers={"wandb": {"project": "streets", "mode": "offline"}}), out)
    longer = [{"name": "joint", "steps": 3}]
    train(recipe_of(tiny_data, stages=longer, trackers={"wandb": {"mode": "offline"}}), out, resume=True)
    first, again = wandb.begun
    name = json.loads((out / NAMES_FILE).read_text())["wandb"]
    assert name.startswith("mine-")
    assert first == {"project": "streets", "mode": "offline", "id": name, "name": name, "resume": "allow"}
    assert again == {**first, "project": "piti"}
    assert wandb.told["stages.0.steps"] == 3
    by_step = {step: {} for step, _ in wandb.logged}
    for step, values in wandb.logged:
        by_step[step] |= values
    assert {"loss", "validation_loss", "preview"} <= by_step[2].keys()
    assert {"loss", "validation_loss", "preview"} <= by_step[3].keys()
    assert wandb.finished == 2


def test_a_tracker_that_fails_on_the_way_ends_no_run(tmp_path: Path, wandb: Wandb) -> None:
    said: list[str] = []
    folder = RunFolder(tmp_path / "run")
    folder.previews.mkdir(parents=True)
    folder.trackers = Trackers(said.append, {"wandb": open_tracker("wandb", {}, folder.root, {})})
    folder.log({"step": 1, "loss": 0.5, "stage": "joint", "odd": float("nan")})
    wandb.broken = True
    folder.log({"step": 2, "loss": 0.25})
    folder.show(2, Image.new("RGB", (8, 8)))
    folder.trackers.close()
    assert wandb.logged == [(1, {"loss": 0.5})]
    assert said == ["wandb: the network is gone; it is disconnected, and the run continues"]
    assert len(folder.metrics.read_text().splitlines()) == 2
    assert (folder.previews / "step-00000002.png").is_file()


def test_a_tracker_that_does_not_start_leaves_the_reason_and_no_training(
    tiny_data: Path, tmp_path: Path, wandb: Wandb
) -> None:
    with pytest.raises(RunError, match=r"wandb does not start: mode must be one of these; correct its options"):
        train(recipe_of(tiny_data, stages=ONE_STAGE, trackers={"wandb": {"mode": "wrong"}}), tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aim", None)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="trackers: aim is not installed"):
        open_tracker("aim", {}, tmp_path, {})


def test_a_damaged_file_of_names_is_drawn_anew(tmp_path: Path, wandb: Wandb) -> None:
    (tmp_path / NAMES_FILE).write_text("{")
    open_tracker("wandb", {}, tmp_path, {})
    assert json.loads((tmp_path / NAMES_FILE).read_text())["wandb"] == wandb.begun[0]["id"]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("wandb", {"wandb": {}}),
        (["wandb", "trackio"], {"wandb": {}, "trackio": {}}),
        ({"wandb": None, "mlflow": {"run_name": "one"}}, {"wandb": {}, "mlflow": {"run_name": "one"}}),
    ],
)
def test_trackers_are_a_list_or_have_options(given: Any, read: dict[str, Any]) -> None:
    recipe = Recipe.parse(read_recipe("street").to_dict() | {"trackers": given}, "street")
    assert recipe.trackers == read
    assert Recipe.parse(recipe.to_dict(), "street") == recipe


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["wandbb"], "no tracker 'wandbb'.*wandb"),
        (["tensorboard"], "give tensorboard: true"),
        ({"wandb": "streets"}, "trackers.wandb"),
        (3, "trackers"),
    ],
)
def test_what_no_tracker_takes_is_refused_in_words(given: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Recipe.parse({"name": "x", "trackers": given}, "x")
