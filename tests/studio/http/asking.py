"""Translation requests over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from tests.studio.tiny import file_of, ids, painted

MASK = file_of(painted(ids()))


def translated(
    client: httpx.Client, condition: bytes | None = MASK, accept: str = "*/*", **fields: Any
) -> httpx.Response:
    files = {} if condition is None else {"condition": ("street.png", condition)}
    fields = {"model": "mask"} | fields
    body = {"files": files} if files else {"files": {key: (None, str(value)) for key, value in fields.items()}}
    values = {key: str(value) for key, value in fields.items()} if files else {}
    return client.post("/api/translate", data=values, headers={"Accept": accept}, **body)
