"""To be written."""

from __future__ import annotations

from fastapi import APIRouter

from saescope.web.site import Site


def routes(site: Site) -> APIRouter:
    """The routes of this part."""
    return APIRouter()
