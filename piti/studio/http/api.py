"""The HTTP interface: routes, requests, responses and errors."""

from __future__ import annotations

import asyncio
import base64
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from piti import __version__
from piti.core.errors import UserError
from piti.core.spec import Spec, in_words
from piti.generation.edits import THE_IMAGES_OWN, Names
from piti.studio.http.forms import Form, FormError, WrongBody, WrongFields, parsed, read_form
from piti.studio.service.inputs import NoPicture
from piti.studio.service.jobs import Cancelled, Job, JobFailed, QueueFull, TimeOver
from piti.studio.service.schema import (
    EditRequest,
    ErrorAnswer,
    Health,
    LimitError,
    ModelInfo,
    PictureAnswer,
    ResultAnswer,
    TooLarge,
    TranslateRequest,
    for_browser,
)
from piti.studio.service.service import Result, Studio, UnknownModel
from piti.studio.service.storage import NotKept

CODES: tuple[tuple[type[UserError], int], ...] = (
    (WrongFields, 422),
    (WrongBody, 415),
    (NoPicture, 415),
    (TooLarge, 413),
    (LimitError, 422),
    (FormError, 400),
    (UnknownModel, 404),
    (NotKept, 404),
    (QueueFull, 429),
    (TimeOver, 504),
    (Cancelled, 503),
    (JobFailed, 500),
    (UserError, 400),
)
"""Status by class of error; the first match counts."""
_MEANINGS = {
    400: "An image or a setting that the model cannot use, or a malformed form.",
    404: "No such model, or the image is no longer kept.",
    408: "The body took too long to arrive.",
    413: "The body or an image is too large.",
    415: "The body is not a form, or a file is not an image.",
    422: "Missing, unknown, mistyped or out-of-range fields; one line each in `details`.",
    429: "The queue is full; try again after `Retry-After` seconds.",
    500: "The model failed.",
    503: "The studio is closing, or the job was cancelled.",
    504: "The job took too long.",
}
_NOWHERE = "nothing at this address; /docs lists all routes"
_WRONG_METHOD = "use another method; see /docs"
_RETRY = 10  # seconds
_GONE = 499  # status of unread responses: the client disconnected
_PNG = "image/png"


def add_api(app: FastAPI, studio: Studio) -> None:
    """Add the routes of a studio, and errors for other methods and for unknown addresses below /api.

    Without the latter, a page mounted at / later would handle them.
    """
    router, methods = _Api(studio).router(), defaultdict[str, set[str]](set)
    app.include_router(router)
    for route in router.routes:
        assert isinstance(route, Route)
        methods[route.path] |= route.methods or set()
    for path, allowed in methods.items():
        wrong_method = _Refused(405, {"Allow": ", ".join(sorted(allowed))})
        app.router.routes.append(Route(path, wrong_method, include_in_schema=False))
    app.router.routes.append(Route("/api/{rest:path}", _Refused(404), include_in_schema=False))


class _Refused:
    """Responds to every method with an error (ASGI application)."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._status, self._headers = status, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(self._status, headers=self._headers)


async def error_answer(request: Request, error: Exception) -> Response:
    """`refusal` as an exception handler of Starlette."""
    return refusal(error)


def refusal(error: Exception) -> Response:
    """The response for an error."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=_GONE)
    if isinstance(error, HTTPException):
        said = {404: _NOWHERE, 405: _WRONG_METHOD}.get(error.status_code, str(error.detail))
        return JSONResponse(ErrorAnswer(error=said).model_dump(), error.status_code, headers=error.headers)
    if isinstance(error, RequestValidationError):
        told = [(one["loc"][-1], str(one["input"])[:80], in_words([one])) for one in error.errors()]
        error = WrongFields([f"'{key}' = {given!r}: {said}" for key, given, said in told])
    if not isinstance(error, UserError):
        words = "internal error of the studio; see its log"
        headers = {"Connection": "close"}  # like uvicorn after an exception; the connection must not be reused
        return JSONResponse(ErrorAnswer(error=words).model_dump(), 500, headers)
    code = next(code for kind, code in CODES if isinstance(error, kind))
    details = error.details if isinstance(error, WrongFields) else []
    headers = {"Retry-After": str(_RETRY)} if code == 429 else None
    return JSONResponse(ErrorAnswer(error=for_browser(error), details=details).model_dump(), code, headers)


class _Api:
    """Routes of one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._reading = anyio.CapacityLimiter(1)  # one image is decoded at a time, in the order of arrival

    def router(self) -> APIRouter:
        router = APIRouter()
        codes = _responses(400, 404, 408, 413, 415, 422, 429, 500, 503, 504)
        codes[200] = {"content": {_PNG: {}}, "description": "The images, or a single one as image/png."}
        made: dict[str, Any] = {"response_model": ResultAnswer, "responses": codes, "tags": ["make"]}
        router.post("/api/translate", openapi_extra=_body(TranslateRequest, _TRANSLATED, self.studio), **made)(
            self.translate
        )
        router.post("/api/edit", openapi_extra=_body(EditRequest, _EDITED, self.studio), **made)(self.edit)
        picture: dict[str, Any] = {
            "response_class": Response,
            "responses": {200: {"content": {_PNG: {}}, "description": "The image."}} | _responses(404, 422),
        }
        self._look(router, "/api/models", self.models)
        self._look(router, "/healthz", self.healthz)
        self._look(router, "/pictures/{picture_id}.png", self.picture, **picture)
        return router

    @staticmethod
    def _look(router: APIRouter, path: str, answer: Callable[..., Any], **described: Any) -> None:
        """A route for GET and HEAD."""
        router.get(path, tags=["look"], **described)(answer)
        router.head(path, include_in_schema=False, **described)(answer)

    async def translate(self, request: Request) -> Response:
        """Generate images of a condition: a file `condition`, or `text` for a prior.

        The response is JSON with the images in base64, or with `Accept: image/png` and `num` 1 the image itself. The
        same condition, settings and seed give the same images as `piti translate`. A client that disconnects cancels
        its job.
        """
        form = await read_form(request, ("condition",))
        text = form.fields.pop("text", None)
        asked = parsed(TranslateRequest, _with_num(request, form))
        loaded = self.studio.model(asked.model)
        self.studio.limits.check(asked)
        if text is not None and form.files:
            raise WrongFields(["'text' and 'condition' are both given; give the one that the model reads"])
        if text is None and not form.files and loaded.kind == "text":
            raise WrongFields([f"'text' is {'empty' if 'text' in form.blank else 'missing'}; describe the image"])

        def submitted() -> Job[Result]:
            if text is not None:
                return self.studio.translate(asked, self.studio.read_text(asked.model, text))
            file = form.taken("condition")
            raw = self.studio.read_condition(asked.model, file.data, file.name)
            return self.studio.translate(asked, raw, file.name)

        return await self._answered(request, submitted)

    async def edit(self, request: Request) -> Response:
        """Edit an image where its condition changes.

        Files: `image`; `condition`, the new condition; `from`, the current one (contained in PNGs written by piti);
        `region`, white where to repaint, instead of where the conditions differ.
        """
        form = await read_form(request, ("image", "condition", "from", "region"))
        asked = parsed(EditRequest, _with_num(request, form))
        if self.studio.model(asked.model).kind == "text":
            raise UserError(
                f"model '{asked.model}' reads text, but images can only be edited here by masks, sketches and depth",
                remedy="use another model, or piti edit, which takes texts",
            )
        self.studio.limits.check(asked)

        def submitted() -> Job[Result]:
            studio, files = self.studio, form.files
            file, told = form.taken("image"), form.taken("condition")
            image, before, upload = studio.read_photograph(asked.model, file.data, file.name)
            to = studio.read_condition(asked.model, told.data, told.name)
            own = None if before is None else THE_IMAGES_OWN
            if "from" in files:
                shown = form.taken("from")
                before, own = studio.read_condition(asked.model, shown.data, shown.name), shown.name
            white = form.taken("region") if "region" in files else None
            region = None if white is None else studio.read_region(white.data, white.name)
            names = Names(asked.model, file.name, told.name, own, None if white is None else white.name)
            return studio.edit(asked, image, to, before, region, upload, names)

        return await self._answered(request, submitted)

    async def models(self) -> list[ModelInfo]:
        """The served models, their kinds of conditions, and their limits."""
        return [loaded.info for loaded in self.studio.models.values()]

    async def healthz(self) -> Health:
        """State of the studio, with its number of jobs."""
        return Health(version=__version__, models=list(self.studio.models), jobs=len(self.studio.queue))

    async def picture(self, picture_id: str, download: bool = False) -> Response:
        """A recent image. download: as an attachment."""
        kept = self.studio.kept(picture_id)
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        if download:
            headers["Content-Disposition"] = f'attachment; filename="{kept.file}"'
        return Response(kept.png, media_type=_PNG, headers=headers)

    async def _answered(self, request: Request, submitted: Callable[[], Job[Result]]) -> Response:
        """The result of a job, which is cancelled if the client disconnects."""
        gone = asyncio.create_task(_gone(request))
        try:
            job = await anyio.to_thread.run_sync(submitted, limiter=self._reading)
            try:
                result = await _first(job.result(), gone)
            finally:
                job.cancel()
            if result is None:
                return Response(status_code=_GONE)
            root = request.scope.get("root_path", "")
            return await anyio.to_thread.run_sync(_answer, result, _wants_png(request), root)
        finally:
            gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client disconnects. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(result: Any, gone: asyncio.Task[None]) -> Any:
    """The result, or None if the client disconnects before."""
    task = asyncio.ensure_future(result)
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    return None


def _answer(result: Result, png: bool, root: str) -> Response:
    """root: the path under which a proxy serves the studio."""
    if png:
        return Response(result.pictures[0].png, media_type=_PNG)
    pictures = [
        PictureAnswer(
            number=picture.number,
            width=picture.width,
            height=picture.height,
            address=f"{root}/pictures/{picture.id}.png",
            png=base64.b64encode(picture.png).decode(),
        )
        for picture in result.pictures
    ]
    answer = ResultAnswer(
        model=result.model, seed=result.seed, seconds=result.seconds, pictures=pictures, notes=list(result.notes)
    )
    return Response(answer.model_dump_json(), media_type="application/json")


def _wants_png(request: Request) -> bool:
    accepted = request.headers.get("accept", "").lower()
    return _PNG in accepted and "json" not in accepted


def _with_num(request: Request, form: Form) -> dict[str, str]:
    """The form's fields; `num` is 1 if an image itself is requested. Raises WrongFields for more."""
    if not _wants_png(request):
        return form.fields
    fields = {"num": "1"} | form.fields
    if fields["num"].strip() != "1":
        raise WrongFields([f"'num' = {fields['num'][:20]!r}: image/png holds one image; set num to 1, or accept JSON"])
    return fields


# The OpenAPI page

_TRANSLATED = {
    "condition": "A mask, sketch or depth map, as the model reads; PNG or another format, for depth also NumPy's."
}
_EDITED = {
    "image": "The photograph.",
    "condition": "The new condition: a mask or a sketch.",
    "from": "The current condition. PNGs written by piti contain it.",
    "region": "White is repainted; by default where the two conditions differ.",
}


def _body(kind: type[Spec], files: dict[str, str], studio: Studio) -> dict[str, Any]:
    """The OpenAPI description of a form, with the models and limits of this studio."""
    schema = kind.model_json_schema()
    pictures = {name: {"type": "string", "format": "binary", "description": said} for name, said in files.items()}
    properties: dict[str, Any] = {name: _without_null(field) for name, field in schema["properties"].items()}
    properties |= pictures
    properties["model"]["enum"] = list(studio.models)
    for name, most in studio.limits.of_fields().items():
        for one in properties[name].get("anyOf", [properties[name]]):
            if one.get("type") == "integer":
                one["maximum"] = most
    if kind is TranslateRequest:
        properties["text"] = {"type": "string", "minLength": 1, "description": "For a prior, instead of a file."}
        schema["oneOf"] = [{"required": ["condition"]}, {"required": ["text"]}]
    needed = ["image", "condition"] if kind is EditRequest else []
    schema |= {"properties": properties, "required": schema.get("required", []) + needed}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without null, since forms omit fields without a value."""
    if "anyOf" not in field:
        return field
    types = [one for one in field["anyOf"] if one != {"type": "null"}]
    rest = {key: value for key, value in field.items() if key != "anyOf" and (key, value) != ("default", None)}
    return rest | (types[0] if len(types) == 1 else {"anyOf": types})


def _responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorAnswer, "description": _MEANINGS[code]} for code in codes}
