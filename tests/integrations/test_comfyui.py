"""The nodes for ComfyUI, as ComfyUI finds, checks and calls them."""

from __future__ import annotations

import importlib.util
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
