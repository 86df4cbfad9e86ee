"""Pixels and metadata of `piti translate`, `piti edit` and the HTTP interface equal the recorded ones."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from piti.pipelines.computing import Computing
from piti.studio.http.app import build_app
from piti.studio.service.schema import Limits
from piti.studio.service.service import Studio
from tests.unchanged.recordings import check_images, skip_if_changed, weights_of
from tests.unchanged.tiny import mask_file, photograph_file, piti, sketch_file, street_file

TINY = {
    "mask-num8-batch8": ("cascade", "mask --num 8 --batch 8 --seed 3"),
    "mask-num8-batch1": ("cascade", "mask --num 8 --batch 1 --seed 3"),
    "mask-base-only": ("cascade", "mask --num 2 --base-only --sampler ddim --guidance 2"),
    "mask-square-size": ("cascade", "mask --num 1 --square --size 48 --upsampler-sampler dpm++"),
    "masks-batch3": ("cascade", "masks --num 2 --batch 3 --upsampler-steps fast27 --sampler unipc"),
    "sketch": ("sketch", "sketch --num 3 --batch 2 --steps 3 --sampler dpm++sde"),
    "text": ("text", "--text 'the sea, and hills' --text 'a street' --num 2 --steps 2"),
    "several": ("several", "--given mask=mask.png --given sketch=sketch.png --num 2 --steps 2"),
    "several-one-part": ("several", "--given sketch=sketch.png --num 1 --steps 2"),
    "baseline": ("baseline", "mask --num 1"),
}
BUNDLED = {
    "street-num8-batch8": (
        ("street", "sketch"),
        "street --upsampler sketch --num 8 --batch 8 --steps 2 --upsampler-steps 1 --size 32",
    ),
    "street-num8-batch1": (
        ("street", "sketch"),
        "street --upsampler sketch --num 8 --batch 1 --steps 2 --upsampler-steps 1 --size 32",
    ),
    "street-base-only": (("street",), "street --num 2 --steps 2 --base-only --guidance 1.5"),
    "street-square": (
        ("street", "sketch"),
        "street --upsampler sketch --num 1 --steps 2 --upsampler-steps 1 --square --size 64",
    ),
    "street-one-step": (("street",), "street --num 2 --steps 2 --square --size 64"),
    "sketch-bundled": (("sketch",), "lines --num 2 --steps 2 --upsampler-steps 1 --size 48"),
    "scenes-prior-text": (("scenes-prior",), "--text 'a river in a forest' --num 2 --steps 3 --sampler ddim"),
}
EDITS = {
    "edit": "--seed 3 --num 2 --guidance 1.5",
    "edit-exact": "--keep exact --variety 0.4 --refinements 2",
    "edit-region": "--region region.png --feather 0.1",
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of inputs, which the test works in."""
    (tmp_path / "masks").mkdir()
    mask_file(tmp_path / "mask.png")
    mask_file(tmp_path / "masks/a.png")
    mask_file(tmp_path / "masks/b.png", moved=12)
    mask_file(tmp_path / "after.png", moved=12)
    sketch_file(tmp_path / "sketch.png")
    sketch_file(tmp_path / "lines.png", 96, 64)
    street_file(tmp_path / "street.png")
    photograph_file(tmp_path / "photograph.png")
    mask_file(tmp_path / "region.png", classes=(0, 0, 255))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(line: str) -> list[str]:
    """A command's arguments; the first may be an input without its suffix."""
    import shlex

    first, *rest = shlex.split(line)
    first = f"{first}.png" if Path(f"{first}.png").is_file() else first
    return [first, *rest]


def pictures(folder: Path) -> dict[str, Path]:
    """PNGs by their names, the sheet too."""
    return {path.name: path for path in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("name", TINY)
def test_translate(name: str, models: Path, inputs: Path) -> None:
    model, line = TINY[name]
    link(models, model)
    piti("translate", *words(line), "--model", f"./{model}", "--out", "out", "--device", "cpu")
    check_images(name, pictures(inputs / "out"))


@pytest.mark.parametrize("name", BUNDLED)
def test_translate_with_bundled_models(name: str, inputs: Path) -> None:
    (model, *others), line = BUNDLED[name]
    weights = weights_of([model, *others])
    skip_if_changed(name, weights)
    piti("translate", *words(line), "--model", model, "--out", "out", "--device", "cpu")
    check_images(name, pictures(inputs / "out"), weights)


@pytest.mark.parametrize("name", EDITS)
def test_edit(name: str, models: Path, inputs: Path) -> None:
    link(models, "cascade")
    given = ["photograph.png", "--from", "mask.png", "--to", "after.png", "--model", "./cascade"]
    piti("edit", *given, *EDITS[name].split(), "--steps", 2, "--upsampler-steps", 2, "--out", "out", "--device", "cpu")
    check_images(name, pictures(inputs / "out"))


def test_edit_of_a_result(models: Path, inputs: Path) -> None:
    """It says itself what it shows."""
    link(models, "cascade")
    fast = ["--model", "./cascade", "--steps", 2, "--upsampler-steps", 2, "--device", "cpu"]
    piti("translate", "mask.png", "--num", 1, "--out", "first", *fast)
    piti("edit", "first/mask_0.png", "--to", "after.png", "--out", "out", *fast)
    check_images("edit-of-a-result", pictures(inputs / "out"))


@pytest.fixture
def client(models: Path, inputs: Path) -> Iterator[TestClient]:
    """An HTTP client of a studio with the tiny models of masks and sketches."""
    for name in ("cascade", "sketch", "text"):
        link(models, name)
    studio = Studio(("cascade", "sketch", "text"), Limits(), Computing("cpu", engine="torch"))
    with TestClient(build_app(studio, page=False), base_url="http://127.0.0.1") as found:
        yield found
    studio.close()


def posted(client: TestClient, path: str, files: dict[str, str], **fields: str) -> dict[str, BytesIO]:
    """The PNGs of an answer by their numbers."""
    given = {name: (file, Path(file).read_bytes()) for name, file in files.items()}
    body = {"files": given} if given else {"files": {key: (None, value) for key, value in fields.items()}}
    answer = client.post(path, data=fields if given else {}, **body)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    values = answer.json()
    return {str(one["number"]): BytesIO(base64.b64decode(one["png"])) for one in values["pictures"]}


def test_api_translate(client: TestClient) -> None:
    made = posted(client, "/api/translate", {"condition": "mask.png"}, model="cascade", num="3", seed="5")
    sketched = posted(client, "/api/translate", {"condition": "sketch.png"}, model="sketch", steps="2", size="24")
    said = posted(client, "/api/translate", {}, model="text", text="the sea", steps="2", sampler="ddim")
    check_images("api-translate", made | {"sketch": sketched["0"], "text": said["0"]})


def test_api_edit(client: TestClient) -> None:
    files = {"image": "photograph.png", "from": "mask.png", "condition": "after.png"}
    check_images("api-edit", posted(client, "/api/edit", files, model="cascade", steps="2", seed="1"))


def link(models: Path, name: str) -> None:
    """Put a tiny model into the current folder: its name is part of what is recorded."""
    Path(name).symlink_to(models / name)
