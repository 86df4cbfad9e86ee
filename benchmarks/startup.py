"""What importing costs: `import piti` and its pipeline, beside torch and diffusers alone.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time

CASES = {
    "torch and diffusers": "import torch; from diffusers import UNet2DConditionModel, DDPMScheduler, DiffusionPipeline",
    "piti": "import piti",
    "piti's pipeline": "import piti.pipelines.pipeline",
    "piti's command line": "import piti.cli",
}


def seconds(code: str) -> float:
    """The fastest of three fresh interpreters."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    bare = seconds("pass")
    measured = {name: seconds(code) - bare for name, code in CASES.items()}
    for name, value in measured.items():
        print(f"{name:22s} {value:6.2f} s")
    beyond = measured["piti's pipeline"] - measured["torch and diffusers"]
    print(f"the pipeline costs {beyond:.2f} s beyond torch and diffusers")


if __name__ == "__main__":
    main()
