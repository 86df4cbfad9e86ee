"""The studio's Dockerfile, without building it: copied files and commands exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib

from typer.main import get_command

from piti.cli.app import app
from tests.conftest import ROOT


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def of(kind: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == kind]


def test_it_uses_known_instructions_and_the_arguments_that_it_declares() -> None:
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
    assert {name for name, _ in instructions()} == known
    declared = {argument.partition("=")[0] for argument in of("ARG")}
    assert declared == {"PYTHON", "DEVICE", "TORCH_INDEX"}
    used = {name for _, text in instructions() for name in re.findall(r"\$\{?([A-Z][A-Z_]*)", text)}
    assert used == declared | {"PITI_DEVICE"}
    assert re.search(r"PITI_DEVICE=\$\{DEVICE\}", of("ENV")[0])
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert [int(part) for part in of("ARG")[0].removeprefix("PYTHON=").split(".")] >= [
        int(p) for p in oldest.split(".")
    ]


def test_what_it_copies_exists_and_suffices() -> None:
    copied = [name for line in of("COPY") for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    travels = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == travels
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = {project["readme"]["file"], *project["license-files"], "pyproject.toml", "constraints.txt", "piti"}
    assert files == set(copied)
    (asked,) = re.findall(r"pip install -c constraints\.txt \"\.\[([a-z,]+)\]\"", " ".join(of("RUN")))
    assert set(asked.split(",")) <= project["optional-dependencies"].keys()


def test_what_it_runs_exists() -> None:
    shell, flag, script, _ = json.loads(of("ENTRYPOINT")[0])
    assert (shell, flag) == ("sh", "-c")
    words = shlex.split(script)
    assert words[:3] == ["exec", "piti", "studio"]
    studio = get_command(app).commands["studio"]  # type: ignore[attr-defined]
    flags = {option for parameter in studio.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= flags
    assert "--allow-host" in flags
    (port,) = of("EXPOSE")
    assert words[words.index("--port") + 1] == port
    assert f"127.0.0.1:{port}/healthz" in of("HEALTHCHECK")[0]
    assert of("USER") == ["piti"]
