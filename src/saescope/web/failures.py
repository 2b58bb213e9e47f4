"""Errors of the pages: one shape for programs, one page for people, and never a traceback for either.

{"error": {"status": 404, "message": "the store holds no dictionary named 'x'; did you mean 'y'?"}}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from saescope.store.errors import NotInStoreError, StoreFailedError
from saescope.web.live import BusyError, NoModelError

_LOG = logging.getLogger("saescope.web")


class ErrorWords(BaseModel):
    """What went wrong."""

    status: int
    message: str


class ErrorShape(BaseModel):
    """Every error of the API."""

    error: ErrorWords


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorShape, "description": words}
    for status, words in {
        400: "The request can not be read.",
        401: "The server wants its token.",
        403: "The request comes from another site, or the store can only be read.",
        404: "There is nothing of this name or number.",
        405: "The address is for another method.",
        408: "The request took too long to arrive.",
        413: "The request is too large.",
        421: "The server is not called by this name.",
        422: "The request is not understood, or asks for too much.",
        503: "Busy, or the database is away: try again after the seconds of Retry-After.",
    }.items()
}
"""For the description of the API."""

_RETRY_SECONDS = 2
_LONGEST = 2000  # characters of a message: an address or a name in it may be very long


def install(app: FastAPI) -> None:
    """Let every error of the application be answered in words."""

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        words, phrase = error.detail, HTTPStatus(error.status_code).phrase
        if words in ("", None, phrase):
            words = phrase
            if error.status_code == 404:
                words = f"there is no page {request.scope['path']}"
            elif error.status_code == 405:
                words = (
                    f"this address takes {(error.headers or {}).get('Allow', 'other methods')}, not {request.method}"
                )
        return refusal(request.scope, error.status_code, words, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return refusal(request.scope, 422, _in_words(error.errors()))

    @app.exception_handler(NotInStoreError)
    async def _unknown(request: Request, error: NotInStoreError) -> Response:
        return refusal(request.scope, 404, str(error))

    @app.exception_handler(StoreFailedError)
    async def _failed(request: Request, error: StoreFailedError) -> Response:
        _LOG.warning("%s", error)
        return refusal(request.scope, 503, str(error), {"Retry-After": str(_RETRY_SECONDS)})

    @app.exception_handler(BusyError)
    async def _busy(request: Request, error: BusyError) -> Response:
        return refusal(request.scope, 503, str(error), {"Retry-After": str(_RETRY_SECONDS)})

    @app.exception_handler(NoModelError)
    async def _absent(request: Request, error: NoModelError) -> Response:
        return refusal(request.scope, 404, str(error))

    @app.exception_handler(PermissionError)
    async def _read_only(request: Request, error: PermissionError) -> Response:
        return refusal(request.scope, 403, str(error))

    @app.exception_handler(UnicodeError)
    async def _no_text(request: Request, error: UnicodeError) -> Response:
        return refusal(request.scope, 422, "a text in the request has half of a character in it, which can not be kept")

    @app.exception_handler(ValueError)
    async def _refused(request: Request, error: ValueError) -> Response:
        return refusal(request.scope, 422, str(error))


def mistake(scope: Mapping[str, Any], error: Exception) -> Response:
    """The answer to what nobody foresaw; the log has the whole of it."""
    _LOG.error("%s failed", scope["path"], exc_info=error)
    return refusal(scope, 500, "the server made a mistake; its log says more")


def is_api(path: str) -> bool:
    """Whether programs ask for this path, and get JSON."""
    return path == "/api" or path.startswith("/api/")


def refusal(scope: Mapping[str, Any], status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that can not be met: JSON under ``/api``, a page elsewhere."""
    message = message[:_LONGEST].encode(errors="backslashreplace").decode()  # what was sent may be no text at all
    if is_api(scope["path"]):
        shape = ErrorShape(error=ErrorWords(status=status, message=message))
        return JSONResponse(shape.model_dump(), status, headers=dict(headers or {}))
    from saescope.web.site import error_page

    return HTMLResponse(error_page(status, message), status, headers=dict(headers or {}))


def _in_words(problems: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for problem in problems[:3]:
        place = [str(part) for part in problem.get("loc", ()) if part not in ("body", "query", "path")]
        said.append(": ".join([*([".".join(place)] if place else []), str(problem.get("msg", "not understood"))]))
    return "; ".join(said) or "the request is not understood"
