"""Importing takes little more memory than the file is large, whatever its format."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from piti.checkpoints.release import as_released, expected_shapes, our_tensors
from tests.released import tiny_weights

KINDS = ["zip", "legacy", "safetensors"]
MEASURE = """
import os
import sys
from pathlib import Path
from piti.checkpoints.convert import import_release

def told(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    process = os.fork()  # one a file: what one took before is not there for the next to use again
    if process:
        assert os.waitpid(process, 0)[1] == 0, name
        continue
    import_release(folder / f"small-{name}", folder / "out/small" / name)  # what libraries import and keep
    before = told("VmRSS")
    import_release(folder / f"large-{name}", folder / "out/large" / name)
    print((told("VmHWM") - before) / (folder / f"large-{name}").stat().st_size, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc/self/status tells a program's own peak")
def test_importing_takes_little_more_memory_than_the_file_is_large(tmp_path: Path) -> None:
    """The whole process, pages of the file that lie in memory included."""
    unet = {"channels": [64, 128, 256, 384], "layers": 1}
    config = {"encoder_spec": {"layers": 1, "width": 256}, "unet_spec": unet | {"token_width": 256}, "image_size": 64}
    shapes = expected_shapes(as_released(config).rules, our_tensors(config))
    large = {key: torch.ones(shape) for key, shape in shapes.items()}
    names = {kind: f"{kind}.{'safetensors' if kind == 'safetensors' else 'pt'}" for kind in KINDS}
    for size, weights in (("small", tiny_weights("piti")), ("large", large)):
        save_file(weights, tmp_path / f"{size}-{names['safetensors']}")
        for kind in ("zip", "legacy"):
            file = tmp_path / f"{size}-{names[kind]}"
            torch.save(weights, file, _use_new_zipfile_serialization=kind == "zip")
    assert all(1e8 < (tmp_path / f"large-{name}").stat().st_size < 2e8 for name in names.values())
    command = [sys.executable, "-c", MEASURE, tmp_path, *names.values()]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    taken = dict(zip(KINDS, map(float, run.stdout.split()), strict=True))
    assert max(taken.values()) < 1.3, taken
