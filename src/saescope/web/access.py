"""The token of a server that others can reach: where a request may carry it, and how it is known again.

It comes once in the address (``?token=``), as a header (``Authorization: Bearer``), or as the cookie that the first request
sets. The cookie holds a digest, which proves the token and does not tell it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import unquote_plus


class Secret:
    """A token that requests must know."""

    def __init__(self, token: str) -> None:
        if not token.strip():
            raise ValueError("an empty token keeps nobody out; give one that can not be guessed")
        self._token = token
        self._proof = self._digest("cookie")
        # cookies belong to a host, not to a port: servers on one machine must not overwrite each other's
        self.cookie_name = f"saescope_{self._digest('name')[:12]}"

    def is_known(self, headers: Mapping[str, str], in_query: list[str]) -> bool:
        """Whether a request with these headers, and these tokens in its address, knows the token."""
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        given = [*in_query, *([credential.strip()] if scheme.lower() == "bearer" else [])]
        cookies = [pair.strip().partition("=") for pair in headers.get("cookie", "").split(";")]
        proofs = [value for name, _, value in cookies if name == self.cookie_name]
        return any([_equal(one, self._token) for one in given] + [_equal(one, self._proof) for one in proofs])

    def cookie(self, *, secure: bool) -> str:
        """The header by which a browser keeps the proof. It goes along when somebody follows a link to here, but not with
        what a page elsewhere loads or sends."""
        return f"{self.cookie_name}={self._proof}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"

    def _digest(self, purpose: str) -> str:
        return hashlib.sha256(f"saescope {purpose} {self._token}".encode(errors="replace")).hexdigest()


def without_token(query: bytes) -> tuple[list[str], bytes]:
    """The tokens in a query string, and the query without them, otherwise as it was."""
    pairs = [pair.partition(b"=") for pair in query.split(b"&")] if query else []
    named = [(unquote_plus(key.decode("latin-1")) == "token", key, sign, value) for key, sign, value in pairs]
    tokens = [unquote_plus(value.decode("latin-1")) for is_token, _, _, value in named if is_token]
    return tokens, b"&".join(key + sign + value for is_token, key, sign, value in named if not is_token)


def _equal(one: str, other: str) -> bool:
    """In a time that tells nothing of either, their lengths included."""
    return hmac.compare_digest(*(hashlib.sha256(text.encode(errors="replace")).digest() for text in (one, other)))
