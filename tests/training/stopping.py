"""A run that is interrupted as by Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piti.training import Recipe, TrainingInterrupted, train
from piti.training.loop import Trainer


def train_and_stop(recipe: Recipe, out: Path, after: int) -> None:
    """Train into `out`, be asked to stop when so many steps are done, and see that it stopped."""
    real = Trainer.train_step

    def interrupted(self: Trainer, *args: Any) -> Any:
        self.stop.asked |= self.state.step == after
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(TrainingInterrupted):
            train(recipe, out)
