"""The web application: pages for people, the same as JSON under ``/api``, and files for the browser. No torch.

``create_app(store)`` is all that is needed to look at features; a `Live` object lets people try texts and steer.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from saescope import __version__
from saescope.store import Store
from saescope.web import compare, failures, feature, feature_map, features, home, remarks, runs, steer, try_text
from saescope.web.bundle import app_script
from saescope.web.guard import LOOPBACK, Guard, Limits
from saescope.web.live import Live
from saescope.web.site import Site
from saescope.web.spread import Readers, Spread

_PARTS = (home, feature, remarks, try_text, steer, feature_map, compare, runs, features)  # the last takes what is left
_THREADS = 8  # that ask the store at the same time; more would only take turns
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


def create_app(
    store: Store,
    *,
    live: Live | None = None,
    run_folders: Sequence[Path] = (),
    token: str | None = None,
    hosts: frozenset[str] | None = LOOPBACK,
    limits: Limits | None = None,
    embedder: str | None = None,
    embed: Any = None,
    readers: Readers | None = None,
) -> FastAPI:
    """The application; the caller closes the store after it.

    Args:
        live: what answers for networks; None for a server that only shows.
        run_folders: folders in which training runs lie.
        token: without it nothing is served; None for no such check.
        hosts: names by which the server may be called, against pages elsewhere whose name points here; None for any,
            which is safe with a token only.
        embedder, embed: for the search by meaning: the embedder's name in the store, and the function from a list of
            texts to vectors.
        readers: processes that draw pages beside this one; the caller closes them.
    """
    limits = limits or Limits()
    site = Site(store=store, live=live, run_folders=tuple(run_folders), limits=limits, embedder=embedder, embed=embed)
    app = application(site)
    if readers is not None:
        app.add_middleware(Spread, readers=readers, site=site)
    app.add_middleware(Guard, token=token, hosts=None if token else hosts, limits=limits)
    return app


def application(site: Site) -> FastAPI:
    """The routes and their errors, with nothing around them that guards."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield

    app = FastAPI(
        title="saescope",
        version=__version__,
        description="Features of sparse dictionaries: what every page shows, as JSON.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
        responses=failures.RESPONSES,
    )
    failures.install(app)
    for part in _PARTS:
        app.include_router(part.routes(site))
    app.include_router(_static())
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=1)
    return app


def _static() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    folder = files("saescope.web") / "static"
    contents = {
        f"{prefix}{path.name}": (path.read_bytes(), _TYPES[Path(path.name).suffix])
        for prefix, place in (("", folder), ("app/", folder / "app"))
        for path in place.iterdir()
        if Path(path.name).suffix in _TYPES
    }
    contents["app.js"] = (app_script().encode(), _TYPES[".js"])  # one file in place of some thirty

    @router.get("/static/{fingerprint}/{name:path}")
    async def asset(fingerprint: str, name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        content, kind = contents[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})

    @router.get("/favicon.ico")
    async def icon() -> Response:
        return Response(contents["app/icon.svg"][0], media_type="image/svg+xml")

    return router
