"""The direction of imports, the file map of docs/architecture.md, and import time."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "piti"

# Each layer imports only from itself and from those above it.
LAYERS = [
    {"core"},
    {"conditions", "models", "diffusion"},
    {"data", "baselines", "engine"},
    {"prepare", "checkpoints"},
    {"training", "pipelines"},
    {"editing"},
    {"generation"},
    {"evaluation", "studio"},
    {"reproduction"},
    {"cli", "__main__"},
]
FOREIGN_TO = {"diffusion": {"conditions", "data", "models"}, "models": {"conditions"}, "conditions": {"models"}}
FIELDS = {"upsampler_guidance", "upsampler_noise"}  # options of a pipeline, and of no flag
FIELDS |= {"num_images", "num_images_per_prompt", "num_inference_steps", "guidance_scale", "output_type", "latents"}
FIELDS |= {"callback_on_step_end", "callback_on_step_end_tensor_inputs", "torch_dtype", "device_map"}
FIELDS |= {"use_safetensors", "save_directory", "keep_exact"}


def layer_of(module: str) -> int:
    for index, names in enumerate(LAYERS):
        if module in names:
            return index
    raise AssertionError(f"piti.{module} belongs to no layer; add it to LAYERS")


def imports_of(path: Path) -> set[str]:
    """First-level modules of piti that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("piti.") and name != "piti.__version__"}
    return found


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name != "__init__.py")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports_of(path):
        assert layer_of(other) <= layer_of(own), f"{path} imports piti.{other}, which lies in a later layer"
        assert other not in FOREIGN_TO.get(own, set()), f"{path} imports piti.{other}"


def texts_of(path: Path) -> list[str]:
    """A file's strings, docstrings aside; what an f-string holds is left out of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documents]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_writes_flags(path: Path) -> None:
    """Elsewhere texts name options by `piti.core.errors.option`, within quoted commands by its `flag`. A variable of
    CSS, `var(--name)`, is no flag."""
    flag = re.compile(r"(?<![\w(-])--(?:[a-z]|$)|(?<!var)\(--[a-z]")
    found = [text for text in texts_of(path) if flag.search(text)]
    may = path.relative_to(PACKAGE).parts[0] == "cli" or path == PACKAGE / "core/errors.py"
    assert may or not found, f"write option(…) or flag(…) instead, in {found}"


def test_texts_name_options_that_the_command_line_has() -> None:
    mention = re.compile(r"""\b(?:option|mention|flag)\(['"](\w+)['"]\)|\boption=['"](\w+)['"]""")
    named = {name for path in sources() for pair in mention.findall(path.read_text(encoding="utf-8")) for name in pair}
    flags = {flag for path in (PACKAGE / "cli").rglob("*.py") for flag in flags_of(path)}
    assert named - {""} - flags <= FIELDS


def flags_of(path: Path) -> set[str]:
    """Keywords of the options that a file of the command line declares."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    declared = re.findall(r"""['"/]--([a-z-]+)""", path.read_text(encoding="utf-8"))
    return names | {name.replace("-", "_") for name in declared}


def test_the_package_itself_imports_nothing() -> None:
    """What it names is imported when it is asked for; type checkers read it at once."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    modules = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert set(modules) <= {"__future__", "importlib", "typing"}


def test_import_stays_light() -> None:
    code = "import sys, piti; print(*(m for m in ('torch', 'diffusers', 'kornia', 'gradio') if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_torchvision_is_never_imported() -> None:
    for path in [*sources(), *ROOT.glob("benchmarks/*.py")]:
        assert "torchvision" not in {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }, f"{path} imports torchvision"


def test_the_architecture_page_maps_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.split("<!-- map -->")[1]
    mapped = {line.split("  ")[0].strip() for line in block.splitlines() if line.startswith("piti/")}
    tree = {str(p.relative_to(ROOT)) for p in sources() if p.name != "__init__.py"} | {"piti/__init__.py"}
    tree |= {str(p.relative_to(ROOT)) for p in (PACKAGE / "recipes").rglob("*.yaml")}
    assert mapped == tree
    assert "docs/architecture.md" in (ROOT / "README.md").read_text(encoding="utf-8")
