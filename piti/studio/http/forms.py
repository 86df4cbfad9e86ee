"""Multipart forms: fields checked as requests, files in memory, every mistake named.

Starlette parses, and limits the number of fields and files and the size of a field. FastAPI's own `Form` parameters
cannot be used: they take the last of duplicate fields, treat another type of body as an empty form (both in
`test_malformed_bodies`), and an empty text as a missing one (`test_a_text_that_says_nothing`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from piti.core.errors import UserError
from piti.core.spec import Spec, choices, in_words

R = TypeVar("R", bound=Spec)

_MOST_FIELDS = 40
_NAME, _ENDING = 100, 10  # characters of a file name, and of its end
_TEXT_BYTES = 64 * 1024  # of a field other than a file


class FormError(UserError):
    """The body is not a form, or a malformed one."""


class WrongBody(FormError):
    """The body has another content type."""


class WrongFields(UserError):
    """Missing, unknown or invalid fields or files, one line each in `details`."""

    def __init__(self, details: list[str]) -> None:
        self.details = details
        super().__init__(details[0] if len(details) == 1 else f"{len(details)} fields are invalid: {details[0]}")


@dataclass(frozen=True)
class File:
    """A file of a form."""

    name: str
    """Its name at the client, without path."""
    data: bytes


@dataclass(frozen=True)
class Form:
    """The fields and files of a form, without empty fields."""

    fields: dict[str, str]
    files: dict[str, File]
    blank: frozenset[str] = frozenset()
    """Names of empty fields."""

    def taken(self, name: str) -> File:
        """Remove and return a file, so that its bytes can be freed. Raises WrongFields if it is missing."""
        if name not in self.files:
            raise WrongFields([f"file '{name}' is missing; send an image (curl -F {name}=@FILE.png)"])
        return self.files.pop(name)


async def read_form(request: Request, files: Collection[str]) -> Form:
    """The body of a multipart form. files: names of file fields.

    Raises WrongBody for another content type, FormError for a malformed body, WrongFields for duplicate fields and for
    texts in place of files, HTTPException if `BodyLimits` ends the body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise WrongBody(f"the body is of type '{kind or 'none'}'; send a form, multipart/form-data (curl -F)")
    try:
        form = await request.form(max_files=len(files) + 1, max_fields=_MOST_FIELDS, max_part_size=_TEXT_BYTES)
    except (MultiPartException, HTTPException) as error:
        if getattr(error, "status_code", 400) != 400:
            raise  # of `BodyLimits`
        what = getattr(error, "message", None) or getattr(error, "detail", error)
        raise FormError(f"the form cannot be read ({what}); send multipart/form-data") from None
    except (ValueError, KeyError, LookupError) as error:  # for invalid boundaries, headers and character sets
        raise FormError(f"the form cannot be read ({error}); send multipart/form-data") from None
    try:
        return await _sorted(form.multi_items(), files)
    finally:
        await form.close()


async def _sorted(items: list[tuple[str, Any]], files: Collection[str]) -> Form:
    """Separate fields and files. Raises WrongFields."""
    fields: dict[str, str] = {}
    found: dict[str, File] = {}
    wrong: list[str] = []
    blank: set[str] = set()
    for key, value in items:
        if key in fields or key in found:
            wrong.append(f"'{key}' is given twice; give it once")
        elif isinstance(value, UploadFile):
            if key not in files:
                wrong.append(f"unknown file '{key}'; {choices(key, files)}")
            elif value.size or value.filename:
                name = (value.filename or key).replace("\\", "/").rpartition("/")[2]
                found[key] = File(_shortened(name) or key, await value.read())
        elif key in files and value:
            wrong.append(f"'{key}' is a text; send a file (curl -F {key}=@FILE.png)")
        elif value.strip():
            fields[key] = value
        else:
            blank.add(key)
    if wrong:
        raise WrongFields(wrong)
    return Form(fields, found, frozenset(blank))


def _shortened(name: str) -> str:
    """A file name of at most 100 characters, including its end, which determines the format of depth."""
    return name if len(name) <= _NAME else f"{name[: _NAME - _ENDING]}{name[-_ENDING:]}"


def parsed(kind: type[R], fields: dict[str, str]) -> R:
    """A form's fields as a request. Raises WrongFields."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        by_key: dict[str, list[Any]] = {}
        for item in error.errors():
            by_key.setdefault(str(item["loc"][0]) if item["loc"] else "request", []).append(item)
        raise WrongFields([_said(kind, key, items) for key, items in by_key.items()]) from None


def _said(kind: type[Spec], key: str, items: list[Any]) -> str:
    """The message for one field. items: its errors, several if it may have several types."""
    item = items[0]
    if item["type"] == "extra_forbidden":
        return f"unknown field '{key}'; {choices(key, kind.model_fields)}"
    if item["type"] == "missing":
        return f"'{key}' is missing"
    return f"'{key}' = {str(item.get('input'))[:80]!r}: {in_words(items)}"
