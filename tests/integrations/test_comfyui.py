"""The nodes for ComfyUI: discovery, validation and calls."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.pipelines.test_pipeline import arrays, mask, seeded, tiny_pipeline

FOLDER = ROOT / "integrations" / "comfyui"
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str}


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The folder as ComfyUI loads what lies in custom_nodes: by its path, under a name of its own."""
    name = "custom_nodes_piti"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def execute(package: ModuleType, node: str, wires: dict[str, Any], **widgets: Any) -> tuple[Any, ...]:
    """What ComfyUI does with a node: check what is connected, complete it by the defaults, call its function.

    wires: input => (type, value).
    """
    kind = package.NODE_CLASS_MAPPINGS[node]
    declared = kind.INPUT_TYPES()
    inputs = {**declared["required"], **declared.get("optional", {})}
    given: dict[str, Any] = {}
    for name, (of, *settings) in inputs.items():
        if name in wires:
            assert wires[name][0] == of, name
            given[name] = wires[name][1]
        elif isinstance(of, list):
            given[name] = widgets.get(name, of[0])
            assert given[name] in of
        elif of in WIDGETS:
            given[name] = widgets.get(name, settings[0]["default"])
            assert (
                settings[0].get("min", -np.inf) <= given[name] <= settings[0].get("max", np.inf)
                if of != "STRING"
                else 1
            )
        else:
            assert name in declared.get("optional", {}), f"{node} misses {name}"
    results = getattr(kind(), kind.FUNCTION)(**given)
    assert len(results) == len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES)
    for of, value in zip(kind.RETURN_TYPES, results, strict=True):
        if of == "IMAGE":
            assert value.ndim == 4
            assert value.shape[-1] == 3
            assert value.dtype == torch.float32
            assert 0 <= value.min() <= value.max() <= 1
    return results


def image_of(*masks: Any) -> tuple[str, torch.Tensor]:
    """Masks in their classes' colours as ComfyUI's images."""
    pipe = tiny_pipeline()
    previews = [np.asarray(pipe.condition.preview(pipe.read(one)), np.float32) / 255 for one in masks]
    return "IMAGE", torch.from_numpy(np.stack(previews))


def test_every_node_says_what_comfyui_asks(package: ModuleType) -> None:
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in package.NODE_CLASS_MAPPINGS.values():
        assert kind.CATEGORY == "piti"
        assert callable(getattr(kind, kind.FUNCTION))
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"**{title}**" in readme for title in package.NODE_DISPLAY_NAME_MAPPINGS.values())


def test_load_translate_and_edit(package: ModuleType, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []

    class ProgressBar:
        def __init__(self, total: int) -> None: ...

        def update_absolute(self, done: int, total: int) -> None:
            steps.append((done, total))

    comfy, utils = ModuleType("comfy"), ModuleType("comfy.utils")
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.utils", utils)
    tiny_pipeline().save_pretrained(tmp_path)
    (pipe,) = execute(package, "PITILoad", {}, model=f" {tmp_path} ", device="cpu")
    wire = {"pipeline": ("PITI_PIPELINE", pipe)}
    one, two = mask(1), mask(2)
    (made,) = execute(package, "PITITranslate", wire | {"condition": image_of(one, two)}, seed=3, num_images=2, steps=2)
    ours = arrays(tiny_pipeline()([one, two], 2, seeded(3), steps=2).images)
    assert np.array_equal((made * 255).round().numpy().astype(np.int16), ours)
    assert steps == [(1, 2), (2, 2)]
    (large,) = execute(package, "PITITranslate", wire | {"condition": image_of(one)}, steps=1, size=32, guidance=0.0)
    assert large.shape == (1, 32, 32, 3)
    picture = ("IMAGE", made[:1])
    changed = wire | {"image": picture, "to": image_of(two), "before": image_of(one)}
    (edited,) = execute(package, "PITIEdit", changed, steps=2, num_images=2)
    assert edited.shape == (2, 16, 16, 3)
    region = torch.zeros(1, 16, 16)
    region[:, :4, :4] = 1
    (part,) = execute(package, "PITIEdit", changed | {"region": ("MASK", region)}, steps=2)
    assert np.abs((part - made[:1]).numpy())[:, 12:, 12:].max() < 0.2


CORE = {
    "LoadImage": ([], ["IMAGE", "MASK"]),
    "ImageFromBatch": (["IMAGE"], ["IMAGE"]),
    "PreviewImage": (["IMAGE"], []),
    "SaveImage": (["IMAGE"], []),
}
"""Types of the inputs and outputs of ComfyUI's own nodes."""


def wired(package: ModuleType, node: dict[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
    """A node's types of wires in and out as its class declares them, and its widgets' values by name."""
    if node["type"] in CORE:
        return (*CORE[node["type"]], {})
    kind = package.NODE_CLASS_MAPPINGS[node["type"]]
    declared = kind.INPUT_TYPES()
    inputs = {**declared["required"], **declared.get("optional", {})}
    widgets = [name for name, (of, *_) in inputs.items() if isinstance(of, list) or of in WIDGETS]
    values, given = list(node["widgets_values"]), {}
    for name in widgets:
        given[name] = values.pop(0)
        if "control_after_generate" in str(inputs[name][1:]):
            assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
    assert not values
    return [of for name, (of, *_) in inputs.items() if name not in widgets], list(kind.RETURN_TYPES), given


def test_the_example_workflow_fits_the_nodes_and_runs(package: ModuleType, tmp_path: Any) -> None:
    """As ComfyUI would: every link joins equal types, every widget has its value, and the graph is executed."""
    file = FOLDER / "example_workflows" / "mask_to_photographs.json"
    graph = json.loads(file.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, start, outlet, end, inlet, of in graph["links"]:
        assert wired(package, nodes[start])[1][outlet] == nodes[start]["outputs"][outlet]["type"] == of
        assert nodes[end]["inputs"][inlet]["type"] == of
    for node in nodes.values():
        taken, _, _ = wired(package, node)
        assert sorted(taken) == sorted(one["type"] for one in node["inputs"]), node["type"]
    pictures = {node["widgets_values"][0] for node in nodes.values() if node["type"] == "LoadImage"}
    assert all(list((ROOT / "examples/street").rglob(name)) for name in pictures)

    tiny_pipeline().save_pretrained(tmp_path)
    values: dict[int, tuple[Any, ...]] = {}
    sources = {link[0]: (link[1], link[2]) for link in graph["links"]}
    for node in sorted(nodes.values(), key=lambda one: one["order"]):
        wires = {
            one["name"]: (one["type"], values[sources[one["link"]][0]][sources[one["link"]][1]])
            for one in node["inputs"]
            if one["link"] is not None
        }
        if node["type"] == "LoadImage":
            values[node["id"]] = (image_of(mask(node["id"]))[1], None)
        elif node["type"] == "ImageFromBatch":
            start, count = node["widgets_values"]
            values[node["id"]] = (wires["image"][1][start : start + count],)
        elif node["type"] in CORE:
            values[node["id"]] = (wires["images"][1],)
        else:
            settings = wired(package, node)[2]
            tiny = {"model": str(tmp_path), "device": "cpu", "steps": 2}
            given = settings | {name: value for name, value in tiny.items() if name in settings}
            values[node["id"]] = execute(package, node["type"], wires, **given)
    shown = {
        nodes[number]["type"]: value[0].shape[0] for number, value in values.items() if nodes[number]["type"] in CORE
    }
    assert shown["PreviewImage"] == 4
    assert shown["SaveImage"] == 1


def test_the_readme_has_the_colours_of_street() -> None:
    classes = json.loads((ROOT / "piti/assets/street/condition.json").read_text(encoding="utf-8"))["classes"]
    rows = re.findall(r"^\| (\w+) \| `#(\w{6})` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    expected = dict(zip(classes["names"], (bytes(one).hex() for one in classes["colours"]), strict=True))
    assert dict(rows) == expected | {"unlabelled": bytes(classes["ignore_colour"]).hex()}


def test_what_is_no_image_is_refused(package: ModuleType) -> None:
    nodes = sys.modules["custom_nodes_piti.nodes"]
    with pytest.raises(ValueError, match=r"expected images \[B, H, W, 1, 3 or 4\], got \[4, 4\]"):
        nodes.to_images(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="'image' has 2 images"):
        nodes.only(torch.zeros(2, 4, 4, 3), "image")
    with pytest.raises(ValueError, match="expected one mask"):
        nodes.to_region(torch.zeros(2, 4, 4))
    assert nodes.to_images(torch.ones(1, 2, 2, 4))[0].getpixel((0, 0)) == (255, 255, 255)
    assert nodes.to_images(torch.zeros(1, 2, 2, 1))[0].size == (2, 2)
