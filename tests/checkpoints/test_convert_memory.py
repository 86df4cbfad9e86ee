"""Importing needs little more memory than the file's size, in every format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from piti.checkpoints.convert import import_release
from piti.checkpoints.release import as_released, expected_shapes, our_tensors
from tests.forked import Forked
from tests.released import tiny_weights

KINDS = ["zip", "legacy", "safetensors"]


def told(key: str) -> int:
    """Bytes that Linux says this process takes ("VmRSS") or has taken at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(folder: Path, names: list[str]) -> None:
    """Write, for each file, what importing it takes beside the size of the file."""
    for name in names:
        process = os.fork()  # one a file: what one took before is not there for the next to use again
        if process:
            assert os.waitpid(process, 0)[1] == 0, name
            continue
        import_release(folder / f"small-{name}", folder / "out/small" / name)  # what libraries import and keep
        before = told("VmRSS")
        import_release(folder / f"large-{name}", folder / "out/large" / name)
        taken = (told("VmHWM") - before) / (folder / f"large-{name}").stat().st_size
        (folder / f"{name}-taken").write_text(str(taken))
        os._exit(0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc/self/status tells a program's own peak")
def test_importing_takes_little_more_memory_than_the_file_is_large(tmp_path: Path) -> None:
    """The whole process, pages of the file that lie in memory included."""
    unet = {"channels": [64, 128, 192, 256], "layers": 1}
    config = {"encoder_spec": {"layers": 1, "width": 256}, "unet_spec": unet | {"token_width": 256}, "image_size": 64}
    shapes = expected_shapes(as_released(config).rules, our_tensors(config))
    large = {key: torch.ones(shape) for key, shape in shapes.items()}
    names = {kind: f"{kind}.{'safetensors' if kind == 'safetensors' else 'pt'}" for kind in KINDS}
    for size, weights in (("small", tiny_weights("piti")), ("large", large)):
        save_file(weights, tmp_path / f"{size}-{names['safetensors']}")
        for kind in ("zip", "legacy"):
            file = tmp_path / f"{size}-{names[kind]}"
            torch.save(weights, file, _use_new_zipfile_serialization=kind == "zip")
    assert all(6e7 < (tmp_path / f"large-{name}").stat().st_size < 1e8 for name in names.values())
    run = Forked(measure, tmp_path, list(names.values()), folder=tmp_path, environment={})
    _, wrong = run.communicate()
    assert run.returncode == 0, wrong
    taken = {kind: float((tmp_path / f"{name}-taken").read_text()) for kind, name in names.items()}
    assert max(taken.values()) < 1.3, taken
