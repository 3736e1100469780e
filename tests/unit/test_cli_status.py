"""`shoal status`: which cluster it means where there are several.

Of the one on this machine two listeners are Ray and the engine.
"""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from tests.unit.test_cli_command import shoal

ELSEWHERE = "127.0.0.1:1"


class _Engine(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class _Ping(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def here(tmp_path: Path) -> Iterator[ClusterFile]:
    """A cluster whose parts answer, started from `tmp_path`."""
    engine = _Engine(str(tmp_path / "engine.sock"), _Ping)
    ray = socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
    serving = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in (engine, ray)]
    for thread in serving:
        thread.start()
    cluster = ClusterFile(
        cluster="here",
        ray_address=f"127.0.0.1:{ray.server_address[1]}",
        engine_address=f"unix://{tmp_path}/engine.sock",
        auth_token_path=str(tmp_path / "auth_token"),
        secret_path=str(tmp_path / "secret"),
        run_dir=str(tmp_path / "run"),
        temp_dir=str(tmp_path / "ray"),
        started_at=1.0,
    )
    cluster_file.write(tmp_path, cluster)
    yield cluster
    for server in (engine, ray):
        server.shutdown()
        server.server_close()
    for thread in serving:
        thread.join()


def test_ray_address_goes_before_the_cluster_on_this_machine(here: ClusterFile, tmp_path: Path) -> None:
    told = shoal("status", "--json", state=tmp_path, RAY_ADDRESS=ELSEWHERE)
    assert told.returncode == 69
    assert json.loads(told.stdout)["url"] == ELSEWHERE
    assert f"no Ray cluster answers at {ELSEWHERE}" in told.stderr


def test_its_variables_are_printed_whatever_they_were_before(here: ClusterFile, tmp_path: Path) -> None:
    for address in ("", ELSEWHERE):
        told = shoal("status", "--env", state=tmp_path, RAY_ADDRESS=address)
        assert told.returncode == 0, told.stderr
        assert f"export RAY_ADDRESS={here.ray_address}\n" in told.stdout


@pytest.mark.parametrize("option", ["token", "ca"])
def test_what_ray_does_not_take_is_a_wrong_call(option: str, here: ClusterFile, tmp_path: Path) -> None:
    told = shoal(f"--{option}", "x", "status", state=tmp_path, RAY_ADDRESS=here.ray_address)
    assert told.returncode == 2
    assert told.stderr.startswith(f"shoal: {option}: ")
