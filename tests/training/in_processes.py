"""Does jobs one after the other, in each of the processes that torchrun starts: `in_processes.py JOBS.json`.

A job is {"recipe": {…}, "out": FOLDER, "resume": bool} or {"argv": arguments of piti}, with what is to go wrong:
"stop_at": a step at which the last process is asked to stop; "terminate_at": one at which torchrun is; "no_data": the
process that finds no data; "full_disk": the process that cannot write its second picture. "sharded" and "zero", the
stage, pretend that FSDP and DeepSpeed are for CPUs too, which accelerate offers for GPUs alone. "spoil_at": a step at
which the last process's loss is not a number.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from piti.cli import app as cli
from piti.data import DataError
from piti.generation import translate
from piti.training import Recipe, TrainingInterrupted, run, train
from piti.training.loop import Trainer

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
_plain_init, _train_step, _open_data = AcceleratorState.__init__, Trainer.train_step, run.open_data
_save_png, _losses = translate.save_png, Trainer.losses


def sharded_init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    _plain_init(self, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin") or self.__dict__.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
    zero: Any = kwargs.get("deepspeed_plugin") or self.__dict__.get("deepspeed_plugins")
    if zero is not None and self.distributed_type == DistributedType.MULTI_CPU:
        zero.set_mixed_precision(self._mixed_precision)
        zero.select(_from_accelerator_state=True)
        self.distributed_type, self.deepspeed_plugins = DistributedType.DEEPSPEED, zero


def do(job: dict[str, Any]) -> None:
    saved = []

    def step(self: Trainer, *args: Any) -> Any:
        self.stop.asked |= self.state.step + 1 == job.get("stop_at") and RANK == WORLD - 1
        if self.state.step + 1 == job.get("terminate_at"):
            if RANK == 0:
                os.kill(os.getppid(), signal.SIGTERM)
            while not self.stop.asked:
                time.sleep(0.01)
        return _train_step(self, *args)

    def losses(self: Trainer, *args: Any) -> Any:
        critique = _losses(self, *args)
        spoilt = self.state.step + 1 == job.get("spoil_at") and RANK == WORLD - 1
        return replace(critique, total=critique.total * float("nan")) if spoilt else critique

    def open_data(*args: Any) -> Any:
        if job.get("no_data") == RANK:
            raise DataError(f"no data in process {RANK}")
        return _open_data(*args)

    def save_png(*args: Any) -> None:
        saved.append(args)
        if job.get("full_disk") == RANK and len(saved) == 2:
            raise OSError(f"no space left for process {RANK}")
        _save_png(*args)

    os.environ["ACCELERATE_USE_FSDP"] = str(job.get("sharded", False)).lower()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(job.get("zero") is not None).lower()
    os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(job.get("zero"))
    with (
        mock.patch.object(Trainer, "train_step", step),
        mock.patch.object(Trainer, "losses", losses),
        mock.patch.object(run, "open_data", open_data),
        mock.patch.object(translate, "save_png", save_png),
        mock.patch.object(AcceleratorState, "__init__", sharded_init),
    ):
        if "argv" in job:
            sys.argv = ["piti", *job["argv"]]
            cli.main()
        else:
            train(Recipe.parse(job["recipe"], "test"), job["out"], job.get("resume", False))


if __name__ == "__main__":
    *jobs, last = json.loads(Path(sys.argv[1]).read_text())
    for job in jobs:
        try:
            do(job)
        except (SystemExit, TrainingInterrupted) as error:
            sys.stdout.write(f"process {RANK}: {type(error).__name__} {error}\n")
        except Exception as error:
            if type(error).__name__ != "FailedElsewhere":
                raise
    do(last)
