"""Detection of NaN losses and gradients, reported with the step and the files of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from piti.core.distributed import together
from piti.core.errors import UserError, option
from piti.training.build import Run
from piti.training.metrics import Measured


class TrainingDiverged(UserError):
    """The loss or its gradient is not a number. The message names the step and the batch's files."""


def check_finite(measured: Measured, run: Run) -> None:
    """Raises TrainingDiverged, based on the means over all processes, so that all decide alike."""
    here, everywhere, keys = measured.here, measured.everywhere, measured.keys
    scaled = run.accelerator.scaler is not None  # the scaler skips steps whose gradient overflows
    if _finite(everywhere, scaled):
        return
    newest = run.folder.newest()
    where = f"step {measured.step}: loss {here['loss']}, gradient norm {here['grad_norm']}"
    kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
    files = run.train.files_of(keys)
    with together():
        # one batch's loss spoils the gradients of all processes; the process with that batch reports it
        if not math.isfinite(here["loss"]) or math.isfinite(everywhere["loss"]):
            raise TrainingDiverged(
                f"{where}; {kept}",
                local_remedy=f"continue with {option('resume')} and a lower learning rate ({option('set')} "
                f"stages.0.lr=… or {option('set')} optimizer.clip=…)",
                remedy="check this batch:" + "".join(f"\n  {file}" for file in files),
            )


def _finite(numbers: Mapping[str, float], scaled: bool) -> bool:
    judged = ["loss", "discriminator"] + ([] if scaled else ["grad_norm", "discriminator_grad_norm"])
    return all(math.isfinite(numbers.get(name, 0.0)) for name in judged)
