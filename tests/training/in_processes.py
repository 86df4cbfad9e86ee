"""Runs jobs in sequence in each of two processes started by torchrun's agent.

A job is {"recipe": {…}, "out": FOLDER, "resume": bool} or {"argv": arguments of piti}, with faults to inject:
"stop_at": a step at which the last process is asked to stop; "terminate_at": one at which the agent is; "no_data": the
process without data; "full_disk": the process that cannot write its second picture. "sharded" and "zero" (the stage)
enable FSDP and DeepSpeed on CPUs, which accelerate offers only for GPUs. "spoil_at": a step at which the last process's
loss is NaN. "lingers": the first process leaves the run last.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from piti.cli import app as cli
from piti.data import DataError
from piti.generation import translate
from piti.training import Recipe, TrainingInterrupted, run, train
from piti.training.loop import Trainer
from piti.training.run_lock import RunLock

_plain_init, _train_step, _open_data = AcceleratorState.__init__, Trainer.train_step, run.open_data
_save_png, _losses, _release = translate.save_png, Trainer.losses, RunLock.release


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
    rank, last = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1

    def step(self: Trainer, *args: Any) -> Any:
        self.stop.asked |= self.state.step + 1 == job.get("stop_at") and rank == last
        if self.state.step + 1 == job.get("terminate_at"):
            if rank == 0:
                os.kill(os.getppid(), signal.SIGTERM)
            while not self.stop.asked:
                time.sleep(0.01)
        return _train_step(self, *args)

    def losses(self: Trainer, *args: Any) -> Any:
        critique = _losses(self, *args)
        spoilt = self.state.step + 1 == job.get("spoil_at") and rank == last
        return replace(critique, total=critique.total * float("nan")) if spoilt else critique

    def open_data(*args: Any) -> Any:
        if job.get("no_data") == rank:
            raise DataError(f"no data in process {rank}")
        return _open_data(*args)

    def save_png(*args: Any) -> None:
        saved.append(args)
        if job.get("full_disk") == rank and len(saved) == 2:
            raise OSError(f"no space left for process {rank}")
        _save_png(*args)

    def release(self: RunLock) -> None:
        time.sleep(0.5 if job.get("lingers") and rank == 0 else 0)
        _release(self)

    os.environ["ACCELERATE_USE_FSDP"] = str(job.get("sharded", False)).lower()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(job.get("zero") is not None).lower()
    os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(job.get("zero"))
    with (
        mock.patch.object(Trainer, "train_step", step),
        mock.patch.object(Trainer, "losses", losses),
        mock.patch.object(run, "open_data", open_data),
        mock.patch.object(translate, "save_png", save_png),
        mock.patch.object(AcceleratorState, "__init__", sharded_init),
        mock.patch.object(RunLock, "release", release),
    ):
        if "argv" in job:
            sys.argv = ["piti", *job["argv"]]
            cli.main()
        else:
            train(Recipe.parse(job["recipe"], "test"), job["out"], job.get("resume", False))


def launch(jobs: list[dict[str, Any]]) -> None:
    """Do the jobs in two processes; as a program that ends by itself where one of them fails."""
    address: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    config = LaunchConfig(1, 1, 2, **address, start_method="fork", max_restarts=0, monitor_interval=0.05)
    elastic_launch(config, do_all)(jobs)


def do_all(jobs: list[dict[str, Any]]) -> None:
    """Do the jobs, of which the last may fail, as a script: a traceback is what Python prints."""
    torch.set_num_threads(1)  # by one thread: torch's pool, made anew after a fork, is made badly by several at once
    *before, last = jobs
    try:
        for job in before:
            try:
                do(job)
            except (SystemExit, TrainingInterrupted) as error:
                sys.stdout.write(f"process {os.environ['RANK']}: {type(error).__name__} {error}\n")
            except Exception as error:
                if type(error).__name__ != "FailedElsewhere":
                    raise
        do(last)
    except Exception as error:  # noqa: BLE001 (as Python does at the end of a script)
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None
