"""`piti models`; `piti import` and `export` are tested with what they convert."""

from __future__ import annotations

from tests.cli.running import run


def test_models_are_listed() -> None:
    said = run("models")
    assert "street" in said
    assert "mask" in said
