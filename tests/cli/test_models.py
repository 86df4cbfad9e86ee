"""`piti models`; `piti import` and `export` are tested with conversion."""

from __future__ import annotations

from tests.cli.running import run


def test_models_are_listed() -> None:
    rows = {line.split()[0]: line for line in run("models").splitlines()}
    assert "mask" in rows["street"]
    assert "needs" not in rows["street"]
    assert "MB, needs street " in rows["street-fast"]  # adapters on its base, enlarged by its upsampler
