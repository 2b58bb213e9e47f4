"""``saescope serve`` as people run it: a process that says where it listens, answers, and stops when it is asked to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.store.records import AnalysisRecord, DictionaryRecord, Explanation, Feature, FeatureRecord

pytestmark = pytest.mark.slow  # real processes and sockets, and clients that let them wait

_SECONDS = 60.0  # until a process must have said or done something, on a machine with other things to do


@pytest.fixture
def file(tmp_path: Path) -> Path:
    record = DictionaryRecord(name="one", model="m", hook_point="h", architecture="topk", d_in=2, d_sae=2)
    features = [
        Feature(record=FeatureRecord(index=i, num_firings=1, density=0.5, max_activation=1.0)) for i in range(2)
    ]
    with Store.open(tmp_path / "features.db") as store:
        store.write(record, AnalysisRecord(dataset="d", context_size=4, num_tokens=4), features, [], [])
        store.explain("one", 1, Explanation(text="numbers"))
    return tmp_path / "features.db"


class Served:
    """A running ``saescope serve``."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "saescope", "serve", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.said = ""
        while "Ctrl+C" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            self.said += line
        (self.address,) = re.findall(r"^(http://\S+) \(Ctrl\+C stops\)$", self.said, re.MULTILINE)
        self.port = int(re.findall(r":(\d+)/", self.address)[0])

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Exit code, and what was said on the error stream."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=_SECONDS)
        return self.process.returncode, said


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*arguments: object) -> Served:
        running.append(Served(*arguments))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_once_it_says_so_and_stops_cleanly(serve: Any, file: Path, number: int):
    served = serve("--store", file, "--port", 0, "--no-models")
    assert served.address == f"http://127.0.0.1:{served.port}/"
    status, page = served.get("/runs")
    assert status == 200
    assert "No training run was found." in page
    began = time.monotonic()
    assert served.stop(number) == (0, "")
    assert time.monotonic() - began < 15
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", served.port), 5)


def test_a_connection_in_the_middle_of_something_does_not_keep_it_from_stopping(serve: Any, file: Path):
    served = serve("--store", file, "--port", 0, "--no-models")
    idle, half = (socket.create_connection(("127.0.0.1", served.port)) for _ in range(2))
    with idle, half:
        half.sendall(b"POST /api/d/one/f/0/notes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{")
        assert served.get("/runs")[0] == 200
        assert served.stop() == (0, "")


def test_runs_of_a_folder_are_found(serve: Any, file: Path, tmp_path: Path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "metrics.jsonl").write_text('{"step": 7, "num_tokens": 70, "loss": 0.5}\n')
    served = serve("--store", file, "--port", 0, "--no-models", "--runs", tmp_path / "runs")
    (run,) = json.loads(served.get("/api/runs")[1])["runs"]
    assert run["name"] == "mine"


def test_with_models_it_says_which_dictionaries_can_be_tried(serve: Any, file: Path):
    served = serve("--store", file, "--port", 0)
    assert served.get("/api/d/one/training")[0] == 200
    assert served.stop() == (0, "")


def test_others_are_let_in_with_the_token_that_was_made_up(serve: Any, file: Path):
    served = serve("--store", file, "--port", 0, "--no-models", "--host", "0.0.0.0")
    token = served.address.partition("?token=")[2]
    assert len(token) >= 32
    assert served.get("/runs")[0] == 401
    assert served.get("/runs", Authorization="Bearer x")[0] == 401
    assert served.get("/runs", Authorization=f"Bearer {token}")[0] == 200


def test_a_token_of_ones_own_is_asked_for_here_as_well(serve: Any, file: Path):
    served = serve("--store", file, "--port", 0, "--no-models", "--token", "open & see")
    assert served.address.endswith("?token=open%20%26%20see")
    assert served.get("/runs")[0] == 401
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/runs?token=open%20%26%20see")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 303
        assert answer.headers["location"] == "/runs"
        cookie = answer.headers["set-cookie"].partition(";")[0]
    assert served.get("/runs", Cookie=cookie)[0] == 200


def test_a_hundred_stalled_connections_keep_nobody_waiting(serve: Any, file: Path):
    served = serve("--store", file, "--port", 0, "--no-models")
    stalled = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
    try:
        for each in stalled:
            each.sendall(b"GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        began = time.monotonic()
        for _ in range(5):
            assert served.get("/runs")[0] == 200
        assert time.monotonic() - began < 9  # before the first of them is given up
    finally:
        for each in stalled:
            each.close()


def refused(cli: Any, *arguments: object) -> str:
    """The one line that a mistake is answered with."""
    ran = cli("serve", *arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    return ran.err


def test_mistakes_are_one_line(cli: Any, file: Path, tmp_path: Path):
    assert "there is no store" in refused(cli, "--store", tmp_path / "nothing.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    assert "text.db" in refused(cli, "--store", tmp_path / "text.db")
    assert "--token is empty" in refused(cli, "--store", file, "--token", "")
    assert "--token is empty" in refused(cli, "--store", file, "--token", "  ")
    assert "no folder" in refused(cli, "--store", file, "--runs", tmp_path / "nowhere")
    assert "--no-models" in refused(cli, "--store", file, "--no-models", "--model", "one=x")
    assert "nothing in the store is named 'two'" in refused(
        cli, "--store", file, "--port", 0, "--model", "two=/nowhere/x"
    )
    assert "--dictionary takes NAME=PATH" in refused(cli, "--store", file, "--port", 0, "--dictionary", tmp_path)
    assert "--host" in refused(cli, "--store", file, "--host", "no.such.host.invalid")
    assert "#MODEL" in refused(cli, "--store", file, "--port", 0, "--no-models", "--embedder", "http://127.0.0.1:1/v1")


def test_a_port_in_use_is_named_with_the_option(cli: Any, file: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(cli, "--store", file, "--port", port, "--no-models")
    assert said.startswith(f"saescope: port {port} of 127.0.0.1 can not be had (Address already in use)")
    assert "--port" in said


def test_two_servers_do_not_share_a_port(serve: Any, cli: Any, file: Path):
    served = serve("--store", file, "--port", 0, "--no-models")
    assert f"port {served.port}" in refused(cli, "--store", file, "--port", served.port, "--no-models")
