"""Importing takes little more memory than the file is large, whatever its format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from piti.checkpoints.release import as_released, expected_shapes, our_tensors
from tests.released import tiny_weights

MEASURE = """
import sys
from pathlib import Path
from piti.checkpoints.convert import import_release

def told(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

small, large, out = map(Path, sys.argv[1:])
import_release(small, out / "small")  # what libraries import and keep
before = told("VmRSS")
import_release(large, out / "large")
print((told("VmHWM") - before) / large.stat().st_size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc/self/status tells a program's own peak")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_importing_takes_little_more_memory_than_the_file_is_large(tmp_path: Path, kind: str) -> None:
    """The whole process, pages of the file that lie in memory included."""
    unet = {"channels": [64, 128, 256, 384], "layers": 1}
    config = {"encoder_spec": {"layers": 1, "width": 256}, "unet_spec": unet | {"token_width": 256}, "image_size": 64}
    shapes = expected_shapes(as_released(config).rules, our_tensors(config))
    large = {key: torch.ones(shape) for key, shape in shapes.items()}
    paths = []
    for name, weights in (("small", tiny_weights("piti")), ("large", large)):
        paths.append(tmp_path / f"{name}.{'safetensors' if kind == 'safetensors' else 'pt'}")
        if kind == "safetensors":
            save_file(weights, paths[-1])
        else:
            torch.save(weights, paths[-1], _use_new_zipfile_serialization=kind == "zip")
    assert 1e8 < paths[1].stat().st_size < 2e8
    command = [sys.executable, "-c", MEASURE, *paths, tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.3
