"""Answers of the parts that stand before the application, in the form that its errors have."""

from __future__ import annotations

import json

from starlette.types import Send


async def answer_in_words(send: Send, status: int, words: str) -> None:
    """An error as `ErrorAnswer` has it."""
    body = json.dumps({"error": words, "details": []}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
