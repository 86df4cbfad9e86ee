"""A table with one tiny run, and evaluations without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from piti.evaluation.result import Evaluation, Measure
from piti.generation.options import GenerationOptions
from piti.reproduction import make, runs
from piti.reproduction.rows import Plan, Row, Training

QUIET = Console(quiet=True)
TINY = Training("tiny", "tiny", "camvid")
LACKING = Training("lacking", "lacking", "camvid")
DIVERGING = Training("diverging", "tiny", "camvid", ("stages.0.lr=1e+30",))
FAST = GenerationOptions.from_flat(steps=2, sampler="ddim")
ROW = Row("tiny", "piti", TINY, options=FAST)
PLAN = Plan("table1", "Table 1: tiny", "small", (ROW,), 16, "train", own_data=True, own_speed=True)


def judged_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations without a network, for tests of everything else."""

    def fake(folder: Path, *rest: object) -> Evaluation:
        return Evaluation((Measure("fd", float(len(list(folder.glob("*.png")))), of="nobody"),), {})

    monkeypatch.setattr(runs, "evaluate_files", fake)
    monkeypatch.setattr(make, "check_judges", lambda *rest, **more: None)
