"""The OpenAPI schema and the studio agree: valid and invalid requests generated from the schema."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from piti.studio.http.app import build_app
from piti.studio.service.schema import EditRequest, TranslateRequest
from piti.studio.service.service import Result, Studio
from piti.studio.service.storage import Picture
from tests.studio.tiny import file_of, ids, painted

PNG = file_of(painted(ids()))
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
TEXTS = ("null", "NaN", "-inf", "1e400", "0x10", "[]", "{}", "'", "\x00", "é" * 40, "9" * 400, "--", "../../etc", "١")

Values = dict[str, Any]
Form = list[tuple[str, Any]]


class Done:
    """A job that has ended without having sampled anything."""

    def __init__(self, request: TranslateRequest | EditRequest) -> None:
        self.request = request

    async def result(self) -> Result:
        pictures = tuple(Picture(PNG, number, 40, 30, self.request.model) for number in range(self.request.num))
        return Result(self.request.model, self.request.seed, pictures, 0.0)

    def cancel(self) -> None:
        pass


@pytest.fixture
def app(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(studio, "_submitted", lambda request, *_: Done(request))
    return build_app(studio, page=False)


def sent(app: Any, requests: list[tuple[str, str, Values]]) -> list[httpx.Response]:
    """The answers to (method, path, what httpx takes)."""

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(all_of_them())


def form_of(operation: Values) -> Values:
    return operation["requestBody"]["content"]["multipart/form-data"]["schema"]


def valid(field: Values) -> list[Any]:
    """Values that a schema allows, its bounds among them."""
    if "anyOf" in field:
        return [value for one in field["anyOf"] for value in valid(one)]
    if "enum" in field or "const" in field:
        return list(field.get("enum", [field.get("const")]))
    if field.get("format") == "binary":
        return [PNG]
    match field["type"]:
        case "boolean":
            return ["true", "false"]
        case "integer":
            low, high = bounds(field)
            return [low, low + 1, high]
        case "number":
            low, high = field["minimum"], field["maximum"]
            return [low, high, (low + high) / 3, f"{high}e0"]
    return ["a street", "x" * max(1, field.get("minLength", 1))]


def invalid(field: Values, chosen: random.Random) -> list[Any]:
    """Values that a schema forbids."""
    if field.get("format") == "binary":
        return ["a text", b"", b"GIF89a", PNG[:60]]
    kinds = field.get("anyOf", [field])
    if all(one["type"] == "string" for one in kinds) and "enum" not in field:
        return []
    whole = [bounds(one) for one in kinds if one["type"] == "integer"]
    real = [(one["minimum"], one["maximum"]) for one in kinds if one["type"] == "number"]
    beyond = [value for low, high in (*whole, *real) for value in (low - 1, high + 1)]
    return [*beyond, *(["1.5"] if whole else []), *chosen.sample(TEXTS, 6)]


def bounds(field: Values) -> tuple[int, int]:
    """The least and the most of a whole number (FastAPI writes bounds as floats)."""
    high = int(field["maximum"]) if "maximum" in field else int(field["exclusiveMaximum"]) - 1
    return int(field["minimum"]), high


def posted(form: Mapping[str, Any] | Form) -> Values:
    items = form.items() if isinstance(form, Mapping) else form
    return {
        "files": [
            (name, (f"{name}.png", value) if isinstance(value, bytes) else (None, str(value))) for name, value in items
        ]
    }


def complete(schema: Values, chosen: random.Random, wanted: set[str]) -> Values:
    """A form with what the schema requires and the wanted fields, of random valid values."""
    names = {*schema["required"], *wanted}
    ways = schema.get("oneOf", [])
    if ways and not any(names.issuperset(way["required"]) for way in ways):
        names |= set(ways[0]["required"])
    return {name: chosen.choice(valid(schema["properties"][name])) for name in sorted(names)}


def valid_forms(schema: Values, chosen: random.Random) -> Iterator[Values]:
    names = sorted(schema["properties"].keys() - {"text"})
    for name in names:
        for value in valid(schema["properties"][name]):
            yield complete(schema, chosen, set()) | {name: value}
    for _ in range(20):
        yield complete(schema, chosen, set(chosen.sample(names, chosen.randint(0, len(names)))))


def invalid_forms(schema: Values, chosen: random.Random) -> Iterator[Values | Form]:
    for name, field in schema["properties"].items():
        whole = complete(schema, chosen, {name})
        for value in invalid(field, chosen):
            yield whole | {name: value}
        yield [*whole.items(), (name, whole[name])]  # given twice
    whole = complete(schema, chosen, set())
    for name in schema["required"]:
        yield {key: value for key, value in whole.items() if key != name}
    for extra in ({"colour": "red"}, {"colour": PNG}, {"": "x"}):
        yield whole | extra
    if "oneOf" in schema:
        yield complete(schema, chosen, {"condition", "text"})
        yield {name: whole[name] for name in schema["required"]}


@pytest.mark.parametrize("path", ["/api/translate", "/api/edit"])
def test_forms_are_taken_and_refused_as_the_schema_says(app: Any, path: str) -> None:
    operation, chosen = app.openapi()["paths"][path]["post"], random.Random(path)
    schema = form_of(operation)
    good, bad = list(valid_forms(schema, chosen)), list(invalid_forms(schema, chosen))
    assert min(len(good), len(bad)) > 50
    answers = sent(app, [("POST", path, posted(form)) for form in [*good, *bad]])
    for form, answer in zip([*good, *bad], answers, strict=True):
        said = (answer.status_code, answer.text[:300], form)
        assert str(answer.status_code) in operation["responses"], said
        assert answer.status_code < 500, said
    for form, answer in zip(good, answers, strict=False):
        assert answer.status_code != 422, (answer.text, form)
    assert sum(answer.status_code == 200 for answer in answers[: len(good)]) > len(good) // 3  # what the model can do
    for form, answer in zip(bad, answers[len(good) :], strict=True):
        assert answer.status_code >= 400, form
        assert answer.json()["error"], form


def test_what_is_looked_at_is_answered_as_the_schema_says(app: Any) -> None:
    paths, requests, documented = app.openapi()["paths"], [], []
    for path, operations in paths.items():
        if "get" not in operations:
            continue
        given = operations["get"].get("parameters", [])
        queries: list[Values] = [{}, {"unknown": "1"}]
        for one in (one for one in given if one["in"] == "query"):
            queries += [{one["name"]: value} for value in (*valid(one["schema"]), *TEXTS)]
        for name in ("a", "é", "%00", "a.b", "x" * 300):
            for query in queries:
                requests.append(("GET", path.replace("{picture_id}", name), {"params": query}))
                documented.append(operations["get"]["responses"])
    for request, answer, allowed in zip(requests, sent(app, requests), documented, strict=True):
        assert str(answer.status_code) in allowed, (request, answer.status_code, answer.text[:200])


def test_other_methods_are_refused_on_every_route(app: Any) -> None:
    paths = {path: {method.upper() for method in operations} for path, operations in app.openapi()["paths"].items()}
    paths |= {path: {"GET"} for path in ("/docs", "/openapi.json")}
    requests = [
        (method, path.replace("{picture_id}", "a"), {})
        for path in paths
        for method in METHODS
        if method not in paths[path]
    ]
    for (method, path, _), answer in zip(requests, sent(app, requests), strict=True):
        assert answer.status_code == 405, (method, path, answer.status_code)
        assert answer.json()["error"]
        assert answer.headers["allow"], path
