"""A small hub in this process: the endpoints that huggingface_hub uses to list, fetch and commit files, and its errors.

    with HubServer() as hub:
        hub.add("org/repo", {"cfg.json": b"{}"})
        ...  # with endpoint=hub.endpoint

Files named ``*.safetensors`` or ``*.pt`` are large files: they are served, and taken, by a second server, as the real hub's
are by another host, and the token must not be sent there. What goes wrong is asked for with `Trouble`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".pt")


@dataclass
class Trouble:
    """Something that goes wrong with requests whose ``METHOD path`` holds these words, some times.

    Attributes:
        status: answer with this error; 0 to send ``cut_after`` bytes and break the connection.
    """

    words: str
    status: int = 0
    cut_after: int = 0
    times: int = 1


@dataclass
class Repository:
    """Commits by name, each with all files, the newest last; names of revisions."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        before = self.commits.get(self.revisions.get(revision, ""), {})
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.revisions[revision] = name
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        name = self.revisions.get(revision, revision)
        return (name, self.commits[name]) if name in self.commits else None


class HubServer:
    """The hub and the host of its large files.

    Attributes:
        requests: ``METHOD path`` of every request, in order; ``ranges`` the parts of files that were asked for.
        leaked: requests to the host of large files that came with a token.
    """

    def __init__(self, token: str = "secret") -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.troubles: list[Trouble] = []
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.leaked: list[str] = []
        self._lock = threading.Lock()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, large)) for large in (False, True)]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def host_of_large_files(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def __enter__(self) -> HubServer:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main", **how: Any) -> str:
        """Commit files to a repository, made if it is not there; the name of the commit."""
        found = self.repositories.setdefault(repo, Repository(**how))
        return found.commit(files, revision)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repositories[repo].at(revision)
        assert found is not None
        return found[1]

    def count(self, words: str) -> int:
        """How many requests hold these words."""
        return sum(words in request for request in self.requests)

    def trouble(self, request: str) -> Trouble | None:
        with self._lock:
            for each in self.troubles:
                if each.words in request and each.times > 0:
                    each.times -= 1
                    return each
        return None


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def _handler(hub: HubServer, large: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _handle(self) -> None:
            path = urlsplit(self.path).path
            request = f"{self.command} {unquote(path)}"
            hub.requests.append(request)
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length) if length else self._chunks()
            trouble = hub.trouble(request)
            self.cut = trouble.cut_after if trouble is not None and not trouble.status else None
            try:
                if trouble is not None and trouble.status:
                    raise _Refused(trouble.status, "", "trouble")
                if large:
                    self._large(request, path)
                else:
                    self._answer(path)
            except _Refused as refused:
                headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
                self._send(refused.status, b'{"error": "refused"}', {k: v for k, v in headers.items() if v})

        do_GET = do_HEAD = do_POST = do_PUT = _handle

        # The host of large files

        def _large(self, request: str, path: str) -> None:
            if self.headers.get("Authorization"):
                hub.leaked.append(request)
            oid = path.rpartition("/")[2]
            if self.command == "PUT":
                if hashlib.sha256(self.body).hexdigest() != oid:
                    raise _Refused(400)
                hub.large[oid] = self.body
                self._send(200, b"")
            else:
                self._send_file(hub.large[oid], {})

        # The hub

        def _answer(self, path: str) -> None:
            parts = [unquote(part) for part in path.strip("/").split("/")]  # a revision may hold a slash of its own
            if path == "/api/repos/create":
                self._create()
            elif path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._may_write("/".join(parts[:2]).removesuffix(".git"))
                self._batch()
            elif path.startswith("/api/models/"):
                self._api("/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                raise _Refused(404)

        def _open(self, repo: str) -> Repository:
            sent = self.headers.get("Authorization", "")
            if sent and sent != f"Bearer {hub.token}":
                raise _Refused(401, "", "Invalid credentials in Authorization header")
            found = hub.repositories.get(repo)
            if found is None or (found.private and not sent):
                raise _Refused(404 if sent else 401, "RepoNotFound", "Repository not found")
            return found

        def _may_write(self, repo: str) -> Repository:
            found = self._open(repo)
            if not self.headers.get("Authorization"):
                raise _Refused(403, "", "no write token")
            return found

        def _at(self, found: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
            there = found.at(revision)
            if there is None:
                raise _Refused(404, "RevisionNotFound", "Invalid rev id")
            return there

        def _api(self, repo: str, rest: list[str]) -> None:
            if rest[:1] == ["preupload"]:
                self._may_write(repo)
                asked = json.loads(self.body)["files"]
                self._json({"files": [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                     "shouldIgnore": False} for f in asked
                ]})  # fmt: skip
            elif rest[:1] == ["commit"]:
                self._commit(repo, rest[1])
            elif rest[:1] == ["tree"]:
                _, files = self._at(self._open(repo), rest[1])
                self._json([
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ])  # fmt: skip
            elif rest in ([], ["revision", *rest[1:]]):
                found = self._open(repo)
                name, files = self._at(found, rest[1] if rest else "main")
                siblings = [{"rfilename": file} for file in files]
                self._json({"id": repo, "sha": name, "private": found.private, "siblings": siblings})
            else:
                raise _Refused(404)

        def _resolve(self, repo: str, revision: str, file: str) -> None:
            found = self._open(repo)
            if found.gated:
                raise _Refused(403, "GatedRepo", "Access to this is restricted")
            name, files = self._at(found, revision)
            if file not in files:
                raise _Refused(404, "EntryNotFound", "Entry not found")
            data = files[file]
            oid = hashlib.sha256(data).hexdigest()
            headers = {"X-Repo-Commit": name, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            if not file.endswith(LARGE):
                self._send_file(data, headers)
                return
            hub.large[oid] = data
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
            self._send(302, b"", headers | {"Location": f"{hub.host_of_large_files}/large/{oid}"})

        def _create(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                raise _Refused(401, "", "Invalid credentials in Authorization header")
            asked = json.loads(self.body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in hub.repositories:
                self._json({"error": "You already created this model repo", "url": f"{hub.endpoint}/{repo}"}, 409)
                return
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.add(repo, {".gitattributes": b""}, private=private)
            self._json({"url": f"{hub.endpoint}/{repo}"})

        def _batch(self) -> None:
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.host_of_large_files}/large/{each['oid']}"}}}
                for each in json.loads(self.body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})

        def _commit(self, repo: str, revision: str) -> None:
            found = self._may_write(repo)
            files: dict[str, bytes] = {}
            for line in self.body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]  # it was brought before
            name = found.commit(files, revision)
            self._json({"commitUrl": f"{hub.endpoint}/{repo}/commit/{name}", "commitOid": name, "success": True})

        # Sending

        def _chunks(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _json(self, document: Any, status: int = 200) -> None:
            self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
            asked = self.headers.get("Range")
            if asked:
                hub.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
                self._send(206, data[start:], headers)
            else:
                self._send(200, data, headers)

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data if self.cut is None else data[: self.cut])
            if self.cut is not None:
                self.close_connection = True

    return Handler


def counted(requests: list[str]) -> Counter[str]:
    """How often each kind of request was made."""
    return Counter(request.partition(" ")[0] for request in requests)
