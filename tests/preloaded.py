"""Imports of the processes of `tests.forked`."""

from __future__ import annotations

import gc

import torch.distributed.fsdp
import torch.distributed.launcher.api
import torch.optim
from accelerate import Accelerator

import piti.cli.app
import piti.cli.train
import piti.generation.translate
import piti.training

__all__ = ["Accelerator", "piti", "torch"]
gc.collect()
gc.freeze()
