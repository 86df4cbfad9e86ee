"""The introductory notebook runs, with few steps and small images, and is committed without outputs."""

from __future__ import annotations

import json
from typing import Any

from PIL import Image

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"
CHEAP = "STEPS, IMAGES, SIZE = 1, 2, 32"


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_runs_from_mask_to_number() -> None:
    names: dict[str, Any] = {}
    for cell in code_cells():
        asked = "parameters" in cell["metadata"].get("tags", [])
        exec(compile(CHEAP if asked else "".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert len(names["photographs"]) == 2
    assert all(isinstance(image, Image.Image) and min(image.size) == 32 for image in names["photographs"])
    assert names["edited"].images[0].size == names["photographs"][0].size
    assert names["result"]["kept, dB"] > 10
    assert all(0 <= names["result"][name] <= 1 for name in ("followed", "another mask"))


def test_it_is_committed_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
    assert "".join(code_cells()[0]["source"]).count("=") == CHEAP.split("=")[0].count(",") + 1
