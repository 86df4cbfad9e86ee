"""Experiment trackers: TensorBoard, and those supported by accelerate."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from piti.core.errors import first_line
from piti.core.files import whole_file
from piti.training.run_state import RunError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "piti"
"""Default project name for trackers."""
CONTINUED = {"wandb": ("id", "name"), "trackio": ("name",)}
"""Trackers that can continue a run, and the options of their `init` that identify it."""
NAMES_FILE = "trackers.json"
"""File in a run's folder with the names of its runs in those trackers."""


class Tracker(Protocol):
    """Receives a run's metrics and previews."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers by their names."""
        ...

    def show(self, step: int, picture: Image.Image) -> None:
        """A preview, RGB."""
        ...

    def close(self) -> None:
        """Finish logging."""
        ...


class TensorBoard:
    """Writes to a folder, and discards what was logged after `step`. Raises RunError if TensorBoard is not
    installed."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RunError(
                "tensorboard: true needs TensorBoard; install it with pip install 'piti[track]', or remove the key"
            ) from None
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log each number as a scalar."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def show(self, step: int, picture: Image.Image) -> None:
        """As image "preview"."""
        self.writer.add_image("preview", np.asarray(picture), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


@dataclass
class Foreign:
    """A tracker supported by accelerate."""

    tracker: GeneralTracker

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log values by the tracker's own method."""
        self.tracker.log(dict(numbers), step=step)

    def show(self, step: int, picture: Image.Image) -> None:
        """As image "preview", if it supports images."""
        if hasattr(self.tracker, "log_images"):
            self.tracker.log_images({"preview": [picture]}, step=step)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Finish the tracker's run."""
        self.tracker.finish()


@dataclass
class Trackers:
    """All trackers of a run. Logging to one that fails stops; the run continues."""

    say: Callable[[str], None] = print
    open: dict[str, Tracker] = field(default_factory=dict)
    """Open trackers by recipe key."""

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Log the numbers of a line of metrics."""
        numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
        self._each(lambda tracker: tracker.log(step, numbers))

    def show(self, step: int, picture: Image.Image) -> None:
        """A preview, RGB."""
        self._each(lambda tracker: tracker.show(step, picture))

    def close(self) -> None:
        """Close all."""
        self._each(lambda tracker: tracker.close())
        self.open.clear()

    def _each(self, told: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                told(tracker)
            except Exception as error:  # noqa: BLE001 - of a network, a service, or a foreign package
                del self.open[name]
                self.say(f"{name}: {first_line(error)}; it is disconnected, and the run continues")


def open_tracker(name: str, options: Mapping[str, Any], folder: Path, recipe: Mapping[str, Any]) -> Tracker:
    """Open a tracker supported by accelerate, with the recipe as its config.

    One in `CONTINUED` continues its earlier run of this folder. options: arguments of its own `init`, and `project`;
    folder: the run's; recipe: keys and single values. Raises RunError if it is not installed or cannot start.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # slow to import, and rarely used

    own = dict(options)
    project = own.pop("project", PROJECT)
    if name in CONTINUED:
        own = dict.fromkeys(CONTINUED[name], _name_in(folder, name)) | {"resume": "allow"} | own
    try:
        kind = LOGGER_TYPE_TO_CLASS[name]
        if kind.requires_logging_directory:
            own = {"logging_dir": str(folder)} | own
        tracker = kind(project, **own)
        tracker.start()
        tracker.store_init_configuration({key: _plain(value) for key, value in recipe.items()})
    except (ImportError, KeyError) as error:
        raise RunError(f"trackers: {name} is not installed ({error})", remedy="install it, or remove the key") from None
    except Exception as error:
        raise RunError(
            f"trackers: {name} does not start: {first_line(error)}", remedy="correct its options, or remove the key"
        ) from error
    return Foreign(tracker)


def _name_in(folder: Path, tracker: str) -> str:
    """The name of a folder's run in a tracker, generated once."""
    place = folder / NAMES_FILE
    names = _names(place)
    if tracker not in names:
        names[tracker] = f"{folder.resolve().name}-{secrets.token_hex(4)}"
        with whole_file(place, overwrite=True) as partial:
            partial.write_text(json.dumps(names, indent=1), encoding="utf-8")
    return names[tracker]


def _names(place: Path) -> dict[str, str]:
    """The names in a file; empty if it is missing or damaged."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: name for key, name in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
