"""Plugins from installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from piti.cli import app as cli
from piti.conditions import CONDITIONS, condition_from_config
from piti.core.plugins import PluginError, load_plugins
from piti.diffusion.samplers import SAMPLERS, sampler_named

MODULE = """
from piti.conditions import SketchCondition, register
from piti.diffusion.samplers import SAMPLERS

@register
class HeatCondition(SketchCondition):
    kind = "heat"

    @classmethod
    def from_config(cls, config, source):
        return cls()

SAMPLERS["cold"] = SAMPLERS["ddim"]
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a plugin; its module's file."""
    information = tmp_path / "heat_maps-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: heat-maps\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[piti.plugins]\nheat = heat_maps\n")
    module = tmp_path / "heat_maps.py"
    module.write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "heat_maps", raising=False)
    return module


def test_what_a_package_adds_is_known(installed: Path) -> None:
    try:
        assert "heat" in load_plugins()
        assert condition_from_config({"kind": "heat"}).kind == "heat"
        assert sampler_named("cold") is sampler_named("ddim")
    finally:
        CONDITIONS.pop("heat", None)
        SAMPLERS.pop("cold", None)


def test_one_that_cannot_be_imported_ends_every_command(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.write_text("import nowhere_at_all")
    with pytest.raises(PluginError, match=r"'heat' of the package heat-maps cannot be imported \(No module named"):
        load_plugins()
    monkeypatch.setattr(sys, "argv", ["piti", "models"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "heat-maps" in capsys.readouterr().err
