"""Start-up time: `import piti` and its pipeline, compared with torch and diffusers alone, and the first image of a new
process.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import piti

EXAMPLE = Path(piti.__file__).parent / "assets/street/examples/avenue.png"
CASES = {
    "torch and diffusers": "import torch; from diffusers import UNet2DConditionModel, DDPMScheduler, DiffusionPipeline",
    "piti": "import piti",
    "piti's pipeline": "import piti.pipelines.pipeline",
    "piti's command line": "import piti.cli",
}


def seconds(*arguments: str) -> float:
    """The fastest of three fresh interpreters."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return min(times)


def first_picture() -> float:
    """Seconds of a command for one guided 256 px sample of `street`, as shipped, with torch."""
    with tempfile.TemporaryDirectory() as out:
        flags = ("--num", "1", "--engine", "torch", "--out", out, "--overwrite")
        return seconds("-m", "piti", "translate", str(EXAMPLE), *flags)


def main() -> None:
    bare = seconds("-c", "pass")
    measured = {name: seconds("-c", code) - bare for name, code in CASES.items()}
    for name, value in measured.items():
        print(f"{name:22s} {value:6.2f} s")
    beyond = measured["piti's pipeline"] - measured["torch and diffusers"]
    print(f"the pipeline costs {beyond:.2f} s beyond torch and diffusers")
    print(f"the first picture of a fresh process, all of it: {first_picture():.2f} s")


if __name__ == "__main__":
    main()
