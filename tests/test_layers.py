"""The direction of imports, the README's file map, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "piti"

# Each layer imports only from those above it; modules on one line form one layer.
LAYERS = [
    {"errors", "spec", "seeding", "ranks", "atomic", "images", "progress", "devices"},
    {"conditions"},
    {"data"},
    {"models"},
    {"diffusion"},
    {"baselines"},
    {"training"},
    {"frames", "cascade", "pipeline", "settings", "provenance", "making", "remake", "given", "translation"}
    | {"exchange", "prepare"},
    {"editing", "evaluation"},
    {"reproduction"},
    {"studio"},
    {"cli", "cli_prepare", "cli_evaluate", "cli_reproduce", "cli_edit", "cli_studio", "cli_flags"},
]
FOREIGN_TO = {"diffusion": {"conditions", "data", "models"}}


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
        assert layer_of(other) <= layer_of(own), f"{path} imports piti.{other}, which lies to its right"
        assert other not in FOREIGN_TO.get(own, set()), f"{path} imports piti.{other}"


def test_the_package_itself_imports_nothing() -> None:
    assert not imports_of(PACKAGE / "__init__.py")


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


def test_the_readme_maps_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- map -->")[1]
    mapped = {line.split("  ")[0].strip() for line in block.splitlines() if line.startswith(("piti/", "recipes/"))}
    tree = {str(p.relative_to(ROOT)) for p in sources()} | {"piti/__init__.py"}
    tree |= {str(p.relative_to(ROOT)) for p in (ROOT / "recipes").rglob("*.yaml")}
    tree = {name for name in tree if not name.endswith("/__init__.py") or name == "piti/__init__.py"}
    assert mapped == tree
