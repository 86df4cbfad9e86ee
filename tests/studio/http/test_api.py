"""The HTTP interface with a real client against a real server: answers and errors."""

from __future__ import annotations

import base64
import dataclasses
import json
import socket
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from piti.studio.service.service import Studio
from tests.studio.http.asking import MASK, translated
from tests.studio.tiny import file_of, ids, painted


def test_pictures_of_a_condition(client: httpx.Client, studio: Studio) -> None:
    answer = translated(client, num=2, seed=3)
    assert answer.status_code == 200
    values = answer.json()
    assert (values["model"], values["seed"], values["notes"]) == ("mask", 3, [])
    assert [picture["number"] for picture in values["pictures"]] == [0, 1]
    for picture in values["pictures"]:
        png = base64.b64decode(picture["png"])
        with Image.open(BytesIO(png)) as image:
            assert image.size == (picture["width"], picture["height"]) == (21, 16)
            assert image.info["piti:condition"] == "street.png"
        fetched = client.get(picture["address"], params={"download": "1"})
        assert fetched.content == png
        assert fetched.headers["content-disposition"] == f'attachment; filename="mask-3-{picture["number"]}.png"'
        assert "immutable" in fetched.headers["cache-control"]
    alone = translated(client, accept="image/png", seed=3)
    assert alone.headers["content-type"] == "image/png"
    first = Image.open(BytesIO(base64.b64decode(values["pictures"][0]["png"])))
    difference = np.asarray(Image.open(BytesIO(alone.content)), int) - np.asarray(first, int)
    assert np.abs(difference).max() <= 1  # made in a batch of another size


def test_a_query_that_says_nothing_is_told_in_words(client: httpx.Client) -> None:
    answer = client.get("/pictures/a.png", params={"download": "maybe"})
    assert answer.status_code == 422
    assert answer.json()["error"] == "'download' = 'maybe': is not true or false; give one of them"
    assert answer.json()["details"] == [answer.json()["error"]]


def test_models_and_health(client: httpx.Client) -> None:
    mask, sketch = client.get("/api/models").json()
    assert (mask["name"], mask["kind"], mask["image_size"], mask["unlabelled"]) == ("mask", "mask", 16, [0, 0, 0])
    assert mask["classes"][1] == {"id": 1, "name": "road", "colour": [128, 64, 128]}
    assert mask["defaults"]["steps"] == 3
    assert mask["limits"]["num"] == 4
    assert sketch["classes"] == []
    health = client.get("/healthz").json()
    assert (health["status"], health["models"], health["jobs"]) == ("ok", ["mask", "lines"], 0)


def test_the_page_of_the_interface_needs_no_other_server(client: httpx.Client) -> None:
    page = client.get("/docs").text
    for address in ("/static-offline-docs/swagger-ui-bundle.js", "/static-offline-docs/swagger-ui.css"):
        assert address in page
        assert client.get(address).status_code == 200
    assert "http" not in page.replace("http-equiv", "")
    schema = client.get("/openapi.json").json()
    assert {"/api/translate", "/api/edit", "/api/models", "/healthz"} <= set(schema["paths"])
    post = schema["paths"]["/api/translate"]["post"]
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["condition"]["format"] == "binary"
    assert form["required"] == ["model"]
    assert {"200", "400", "413", "415", "422", "429", "504"} <= set(post["responses"])
    assert set(post["responses"]["200"]["content"]) == {"application/json", "image/png"}  # which clients may choose
    assert all(field.get("description") for field in form["properties"].values())


def test_a_form_has_no_null(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/api/translate", "/api/edit"):
        form = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert "null" not in json.dumps(form), path
        assert form["properties"]["guidance"] == {
            "description": "Guidance strength w, 0 is off; the model's own by default.",
            "maximum": 50, "minimum": 0, "title": "Guidance", "type": "number",
        }  # fmt: skip
        assert {"type": "integer", "minimum": 1, "maximum": 500} in form["properties"]["upsampler_steps"]["anyOf"]
    assert translated(client, guidance="null").status_code == 422
    assert translated(client, guidance="", num=1, steps=2).status_code == 200  # left out


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "masks"}, 404, "did you mean 'mask'"),
        ({"num": "0"}, 422, "'num' = '0': is too small; give at least 1"),
        ({"num": "two"}, 422, "'num' = 'two': is not a whole number"),
        ({"num": "5"}, 422, "num = 5: this studio allows at most 4"),
        ({"num": "1.5"}, 422, "'num' = '1.5': is not a whole number"),
        ({"base_only": "maybe"}, 422, "'base_only' = 'maybe': is not true or false"),
        ({"guidance": "much"}, 422, "'guidance' = 'much': is not a number"),
        ({"upsampler_steps": "few"}, 422, "'few': is not a whole number, and is not 'fast27'"),
        ({"seed": "-1"}, 422, "'seed'"),
        ({"seed": "nan"}, 422, "'seed'"),
        ({"seed": str(2**63)}, 422, "is too large; give less than 9223372036854775808"),
        ({"guidance": "nan"}, 422, "finite"),
        ({"guidance": "inf"}, 422, "'guidance'"),
        ({"guidance": "1e400"}, 422, "'guidance'"),
        ({"steps": "501"}, 422, "steps = 501"),
        ({"size": "100000"}, 422, "size = 100000"),
        ({"size": "5"}, 400, "size 5: this model was trained"),
        ({"sampler": "euler"}, 422, "'sampler' = 'euler': is not a sampler; known: ddpm"),
        ({"upsampler_steps": "3"}, 400, "no upsampler"),
        ({"nmu": "3"}, 422, "unknown field 'nmu'; did you mean 'num'"),
        ({"text": "a street"}, 422, "both given"),
    ],
)
def test_wrong_fields_are_told_in_words(client: httpx.Client, fields: dict[str, str], status: int, words: str) -> None:
    answer = translated(client, **fields)
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert set(error) == {"error", "details"}
    assert words in error["error"]


def test_every_wrong_field_is_told(client: httpx.Client) -> None:
    error = translated(client, num="x", seed="y", odd="z").json()
    assert len(error["details"]) == 3
    assert error["error"].startswith("3 fields are invalid")


@pytest.mark.parametrize(
    ("condition", "status", "words"),
    [
        (None, 422, "file 'condition' is missing"),
        (b"", 415, "is empty; choose an image (PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or JPEG 2000)"),
        (b"not a picture", 415, "is not a supported image"),
        (MASK[:80], 400, "damaged"),
        (file_of(Image.new("RGB", (30, 30), (255, 0, 200))), 400, "far from the colour of every class"),
        (file_of(Image.new("L", (800, 800))), 413, "800 x 800 pixels, at most 200000"),
        (file_of(painted(ids(100, 20))), 400, "at most 4:1"),
        (np.random.default_rng(0).bytes(500_000), 413, "larger than the 400000 bytes"),
    ],
)
def test_unusable_files_are_told_in_words(
    client: httpx.Client, condition: bytes | None, status: int, words: str
) -> None:
    answer = translated(client, condition)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def part(name: str, value: bytes) -> bytes:
    """A field of a form whose boundary is x."""
    return b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("kind", "body", "statuses"),
    [
        ("application/json", b'{"model": "mask"}', {415}),
        ("text/plain", b"hello", {415}),
        ("multipart/form-data", b"hello", {400}),
        (FORM, b"--y\r\nhello", {400}),
        (FORM, part("model", b"mask")[:-8], {400, 422}),
        (FORM, part("model", b"a" * 80_000) + b"--x--\r\n", {400}),
        (FORM, b"".join(part(f"f{k}", b"1") for k in range(60)) + b"--x--\r\n", {400}),
        (FORM, part("model", b"mask") * 2 + b"--x--\r\n", {422}),
        (FORM, part("model", b"\xff\xfe\x00") + b"--x--\r\n", {400, 404, 422}),
        (FORM, b"", {400, 422}),
    ],
)
def test_malformed_bodies(client: httpx.Client, kind: str, body: bytes, statuses: set[int]) -> None:
    answer = client.post("/api/translate", content=body, headers={"Content-Type": kind})
    assert answer.status_code in statuses, answer.text
    assert answer.json()["error"]


def test_other_methods_addresses_and_pages(client: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/api/translate", 405),
        ("POST", "/api/models", 405),
        ("GET", "/api/nothing", 404),
        ("GET", "/pictures/nothing.png", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/healthz", 405),
        ("PATCH", "/api/models", 405),
        ("DELETE", "/api/nothing", 404),
        ("POST", "/pictures/nothing.png", 405),
        ("TRACE", "/api/translate", 405),
        ("BREW", "/api/edit", 405),
        ("TRACE", "/healthz", 405),
        ("BREW", "/pictures/nothing.png", 405),
        ("TRACE", "/api/nothing", 404),
        ("TRACE", "/docs", 405),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, bool(answer.json()["error"])) == (status, True), path
        assert ("allow" in answer.headers) == (status == 405)
    assert client.head("/healthz").status_code == client.head("/api/models").status_code == 200
    assert client.head("/docs").status_code == client.head("/openapi.json").status_code == 200
    assert client.get("/healthz", headers={"Host": "[::1"}).status_code == 421
    assert client.post("/api/translate", headers={"Origin": "http://[::1"}).status_code == 403
    assert translated(client, num=2, accept="image/png").status_code == 422
    text = client.post("/api/translate", files={"model": (None, "mask"), "condition": (None, "a text")})
    assert (text.status_code, "'condition' is a text" in text.json()["error"]) == (422, True)
    foreign = client.post("/api/translate", headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/healthz", headers={"Host": "studio.example"}).status_code == 200


def test_a_bug_is_told_in_words_too(client: httpx.Client, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio, "translate", lambda *values: {}["nothing"])
    answer = translated(client)
    assert (answer.status_code, "internal error" in answer.json()["error"]) == (500, True)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("text", "what"), [(None, "missing"), ("", "empty"), (" \n", "empty")])
def test_a_text_that_says_nothing(
    client: httpx.Client, studio: Studio, monkeypatch: pytest.MonkeyPatch, text: str | None, what: str
) -> None:
    loaded = studio.models["mask"]
    reads_text = dataclasses.replace(loaded, info=loaded.info.model_copy(update={"kind": "text"}))
    monkeypatch.setitem(studio.models, "mask", reads_text)  # type: ignore[arg-type]
    answer = translated(client, None, **({} if text is None else {"text": text}))
    assert (answer.status_code, answer.json()["error"]) == (422, f"'text' is {what}; describe the image")
    edit = client.post(
        "/api/edit", data={"model": "mask"}, files={"image": ("m.png", MASK), "condition": ("m.png", MASK)}
    )
    assert (edit.status_code, "piti edit, which takes texts" in edit.json()["error"]) == (400, True)


def test_what_is_unlabelled_is_in_the_notes(client: httpx.Client) -> None:
    holes = ids()
    holes[:8] = 255
    notes = translated(client, file_of(Image.fromarray(holes)), num=1, steps=2).json()["notes"]
    assert "unlabelled" in notes[0]
    whole = file_of(Image.fromarray(np.full_like(holes, 255)))
    notes = translated(client, whole, num=1, steps=2).json()["notes"]
    assert "warning: the mask is unlabelled throughout, so no class guides the image" in notes
    photograph = translated(client, MASK, "image/png", num=1).content
    files = {"image": ("p.png", photograph), "condition": ("after.png", file_of(Image.fromarray(holes)))}
    answer = client.post("/api/edit", data={"model": "mask", "steps": "4"}, files=files)
    assert answer.status_code == 200, answer.text
    assert any("unlabelled" in note for note in answer.json()["notes"])


def test_an_edit(client: httpx.Client) -> None:
    before, after = ids(64, 48), ids(64, 48)
    after[30:44, 40:60] = 2
    photograph = translated(client, file_of(painted(before)), "image/png", num=1).content
    files = {"image": ("photograph.png", photograph), "condition": ("after.png", file_of(painted(after)))}
    fields = {"model": "mask", "steps": "4", "keep_exact": "true"}
    answer = client.post("/api/edit", data=fields, files=files)  # what it shows now is in the photograph itself
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["pictures"]) == 1
    assert "was repainted" in answer.json()["notes"][0]
    png = base64.b64decode(answer.json()["pictures"][0]["png"])
    said = Image.open(BytesIO(png)).info
    assert (said["piti:model"], said["piti:edited"], said["piti:edit_to"]) == ("mask", "photograph.png", "after.png")
    assert said["piti:edit_from"] == "the image's own"
    with Image.open(BytesIO(photograph)) as plain:
        files["image"] = ("plain.png", file_of(Image.fromarray(np.asarray(plain))))
    files |= {"from": ("before.png", file_of(painted(before)))}
    told = client.post("/api/edit", data=fields, files=files, headers={"Accept": "image/png"})
    told_of = {key: Image.open(BytesIO(told.content)).info[f"piti:{key}"] for key in ("edited", "edit_from")}
    assert told_of == {"edited": "plain.png", "edit_from": "before.png"}
    assert np.array_equal(np.asarray(Image.open(BytesIO(told.content))), np.asarray(Image.open(BytesIO(png))))
    for missing in ("image", "condition"):
        some = {key: file for key, file in files.items() if key != missing}
        refused = client.post("/api/edit", data=fields, files=some)
        assert (refused.status_code, f"file '{missing}' is missing" in refused.json()["error"]) == (422, True)
    wrong = client.post("/api/edit", data=fields | {"variety": "1.5", "sampler": "ddim"}, files=files)
    assert (wrong.status_code, len(wrong.json()["details"])) == (422, 2)
    other = client.post("/api/edit", data=fields, files=files | {"mask": ("m.png", MASK)})
    assert (other.status_code, "unknown file 'mask'" in other.json()["error"]) == (422, True)


def test_a_long_name_keeps_its_end(client: httpx.Client) -> None:
    """Depth in .npy under a name of more than 100 characters was no picture."""
    files = {"condition": (f"{'d' * 200}.npy", b"")}
    error = client.post("/api/translate", data={"model": "mask"}, files=files).json()["error"]
    assert error.startswith(f"{'d' * 96}.npy: is empty")


def test_what_is_to_be_kept_exactly_and_cannot_be_is_refused(client: httpx.Client) -> None:
    """Transparency and 16 bits were dropped without a word."""
    clear = painted(ids())
    clear.putalpha(Image.fromarray(np.where(ids() == 0, 100, 255).astype(np.uint8)))
    deep = Image.fromarray(ids().astype(np.uint16) * 9000)
    after = file_of(painted(np.where(ids() == 2, 1, ids())))
    for name, image, lost in (("clear.png", clear, "its transparency"), ("deep.png", deep, "beyond 8 bits")):
        files = {"image": (name, file_of(image)), "from": ("m.png", MASK), "condition": ("after.png", after)}
        fields = {"model": "mask", "steps": "2", "keep_exact": "true"}
        answer = client.post("/api/edit", data=fields, files=files)
        assert (answer.status_code, answer.json()["error"][: len(name)]) == (400, name), answer.text
        assert lost in answer.json()["error"]
        assert client.post("/api/edit", data=fields | {"keep_exact": "false"}, files=files).status_code == 200


def test_nothing_is_looked_up_or_connected_to(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Any] = []
    connect, lookup = socket.socket.connect, socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", lambda self, where: met.append(where) or connect(self, where))
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: met.append((host,)) or lookup(host, *rest, **more)
    )
    assert translated(client, num=1).status_code == 200
    for path in ("/docs", "/openapi.json", "/api/models", "/healthz"):
        assert client.get(path).status_code == 200
    assert {where[0] for where in met if isinstance(where, tuple)} <= {"127.0.0.1"}
