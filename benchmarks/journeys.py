"""Count function calls from a condition to a PNG, for several commands (journeys).

python benchmarks/journeys.py

Counts calls of this package's functions, in all threads, with the bundled model `street` and few steps; each journey
runs once before, to exclude imports. Module bodies, lambdas and comprehensions are ignored.
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file

from piti.cli.app import app
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec
from piti.pipelines.computing import Computing
from piti.studio.http.app import build_app
from piti.studio.service.service import Studio

# Counted functions, by `module.qualified_name`. Calls within a call of the same row are not counted.
COUNTED = {
    "canvas computed": r"piti\.pipelines\.canvas\.canvas_(of|over)",
    "sampling resolved": r"piti\.(pipelines|editing)\.options\.\w+\.resolve",
    "condition read": r"piti\.conditions\.\w+\.\w*Condition\.(load|read)",
    "… from a file": r"piti\.conditions\.\w+\.\w*Condition\.load",
    "… fitted": r"piti\.pipelines\.canvas\.fitted",
    "… encoded": r"piti\.conditions\.\w+\.\w*Condition\.encode",
    "… by a network": r"piti\.models\.translator\.Translator\.encode",
    "… hashed": r"piti\.generation\.metadata\.\w+_hash|piti\.pipelines\.\w+\.content_hash",
    "pipeline called": r"piti\.pipelines\.pipeline\.PITIPipeline\.(__call__|generate)",
    "sampled": r"piti\.pipelines\.\w+\.sample_cascade",
}
# The library function that a command calls, within which calls are counted. Requests are counted as a whole.
ENTRIES = {
    "translate": r"piti\.generation\.\w+\.translate_files",
    "edit": r"piti\.generation\.\w+\.edit_file",
    "evaluate": r"piti\.evaluation\.\w+\.evaluate_files",
}
ROOT = Path(__file__).resolve().parent.parent
BEFORE = ROOT / "examples/street/high_street.png"
AFTER = ROOT / "examples/street/edits/high_street_car_gone.png"
FUNCTION = 0x1  # flag of code objects, not set for module and class bodies


class Journey:
    """Counts calls while `entry` runs; None: while `counting` is set."""

    def __init__(self, entry: str | None = None) -> None:
        self.entry = None if entry is None else re.compile(entry)
        self.calls: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.deepest = 0
        self.counting = False
        self._within: FrameType | None = None
        self._threads = threading.local()
        self._lock = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[Journey]:
        """Profile this thread and those started within the block."""
        threading.setprofile(self._watch)
        sys.setprofile(self._watch)
        try:
            yield self
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # pyright: ignore[reportArgumentType]

    def columns(self) -> dict[str, int]:
        """Values of the table."""
        own = {"functions": len(self.calls), "calls": self.calls.total(), "deepest chain of calls": self.deepest}
        return own | {row: self.found[row] for row in COUNTED}

    def _watch(self, frame: FrameType, event: str, _: Any) -> None:
        """The callback for `sys.setprofile`."""
        if event not in ("call", "return"):
            return
        code, module = frame.f_code, frame.f_globals.get("__name__") or ""
        if not module.startswith("piti.") or not code.co_flags & FUNCTION or code.co_name.startswith("<"):
            return
        name = f"{module}.{code.co_qualname}".replace(".<locals>", "")
        if event == "call" and self.entry is not None and self._within is None and self.entry.fullmatch(name):
            self._within, self.counting = frame, True
        if event == "call" and self.counting:
            self._called(name)
        if event == "return":
            self._returned(name)
        if event == "return" and frame is self._within:
            self._within, self.counting = None, False

    def _called(self, name: str) -> None:
        chain = self._chain()
        chain.append(name)
        with self._lock:
            self.calls[name] += 1
            self.deepest = max(self.deepest, len(chain))
            for row in rows_of(name):
                self.found[row] += not any(row in rows_of(outer) for outer in chain[:-1])

    def _returned(self, name: str) -> None:
        chain = self._chain()
        if chain and chain[-1] == name:
            chain.pop()

    def _chain(self) -> list[str]:
        """This package's functions on this thread's stack."""
        if not hasattr(self._threads, "chain"):
            self._threads.chain = []
        return self._threads.chain


@cache
def rows_of(name: str) -> list[str]:
    """The rows of `COUNTED` in which a function is counted."""
    return [row for row, pattern in COUNTED.items() if re.fullmatch(pattern, name)]


def run(*arguments: object) -> None:
    """Run a command in this process, silently."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        app([str(argument) for argument in arguments], standalone_mode=False)


def of_command(entry: str, *arguments: object) -> Journey:
    """The journey of a command, run a second time."""
    run(*arguments)
    with Journey(entry).watching() as journey:
        run(*arguments)
    return journey


def of_request() -> Journey:
    """The journey of `POST /api/translate`, run a second time."""
    with Journey().watching() as journey:
        studio = Studio(("street",), computing=Computing("cpu", engine="torch"))
        with TestClient(build_app(studio, page=False), base_url="http://127.0.0.1") as client:
            for journey.counting in (False, True):
                fields = {"model": "street", "steps": "2", "upsampler_steps": "1", "size": "32"}
                answer = client.post("/api/translate", data=fields, files={"condition": BEFORE.read_bytes()})
                assert answer.status_code == 200, answer.text
            journey.counting = False
        studio.close()
    return journey


def journeys(place: Path) -> dict[str, Journey]:
    """All journeys. place: a working folder."""
    images, photograph = place / "images", place / "photograph.png"
    quick = ["--steps", 2, "--upsampler-steps", 1, "--device", "cpu"]
    translate = ["translate", BEFORE, "--num", 1, "--size", 32, "--out", images, "--overwrite", *quick]
    made = {
        "`translate`, one file": of_command(ENTRIES["translate"], *translate),
        "`POST /api/translate`": of_request(),
    }
    with Image.open(images / f"{BEFORE.stem}_0.png") as image:
        image.resize((320, 240)).convert("RGB").save(photograph)
    edit = ["edit", photograph, "--from", BEFORE, "--to", AFTER, "--out", place / "edit", "--overwrite", *quick]
    made["`edit`, files"] = of_command(ENTRIES["edit"], *edit)
    weights = place / "features.safetensors"
    save_file(PerceptualNetwork(PerceptualSpec(network="squeezenet1_1")).state_dict(), weights)
    run(*translate, "--num", 4)
    evaluate = ["evaluate", images, "--real", BEFORE.parent, "--features", weights, "--bootstrap", 0]
    made["`evaluate`, a folder"] = of_command(ENTRIES["evaluate"], *evaluate, "--device", "cpu")
    return made


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        made = {name: journey.columns() for name, journey in journeys(Path(place)).items()}
    first = next(iter(made.values()))
    print(f"| | {' | '.join(made)} |\n|---|{'---|' * len(made)}")
    for row in first:
        print(f"| {row} | {' | '.join(f'{columns[row]:,}' for columns in made.values())} |")


if __name__ == "__main__":
    main()
