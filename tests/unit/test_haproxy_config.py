"""What is made of the configuration that Serve writes for HAProxy. It is Ray's own, rendered by the Ray that is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.cluster.serving import haproxy
from shoal.cluster.serving.haproxy_config import Edge, Unfamiliar, rewrite
from tests.haproxy import render

pytestmark = pytest.mark.slow  # seconds for all of it

EDGE = Edge("127.0.0.1", 8000, 10.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")


@pytest.fixture(scope="module")
def written(directory: Path) -> str:
    return render(directory / "served", 20_001, 20_002).read_text()


@pytest.fixture(scope="module")
def empty(directory: Path) -> str:
    return render(directory / "empty").read_text()


def lines(text: str, word: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if re.match(rf"\s*{word}\s", line)]


def test_what_ray_writes_is_still_what_has_to_be_changed(written: str) -> None:
    assert len(lines(written, "bind")) == 3
    assert "mode 666" in written
    assert len(lines(written, "errorfile")) == 3
    assert "backup" in written


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore")  # of Ray Serve, when it is imported
async def test_what_replicas_say_of_their_health_is_still_what_is_looked_for(written: str) -> None:
    from ray.serve._private.replica import Replica

    (pattern,) = re.findall(r"http-check expect rstring (.+)", rewrite(written, EDGE))
    for shutting_down, healthy, taken in ((False, True, True), (True, True, True), (False, False, False)):
        replica: Any = SimpleNamespace(_shutting_down=shutting_down, _healthy=healthy)
        _, said = await Replica._dataplane_health_check(replica)
        assert (re.search(pattern, said) is not None) is taken, said


def test_only_the_api_is_listened_for(written: str) -> None:
    assert [line.split()[1] for line in lines(rewrite(written, EDGE), "bind")] == ["127.0.0.1:8000"]
    six = rewrite(written, Edge("::1", 8000, 10.0))
    assert [line.split()[1] for line in lines(six, "bind")] == ["[::1]:8000"]


def test_the_admin_socket_is_for_its_owner_only(written: str) -> None:
    (socket,) = lines(rewrite(written, EDGE), "stats socket")
    assert " mode 600 " in socket


def test_urls_go_into_no_log(written: str) -> None:
    sinks = [line for line in lines(rewrite(written, EDGE), "log") if line != "log global"]
    assert sinks == ["log stderr format raw local0 notice"]


def test_all_replicas_stay_and_serves_own_proxy_goes(written: str) -> None:
    servers = lines(rewrite(written, EDGE), "server")
    assert [line.split()[1:3] for line in servers] == [
        ["replica-0", "127.0.0.1:20001"],
        ["replica-1", "127.0.0.1:20002"],
    ]


def test_replicas_are_reached_where_they_listen(written: str) -> None:
    there = rewrite(written, Edge("0.0.0.0", 8000, 10.0, replica_host="10.0.0.5"))
    assert [line.split()[2] for line in lines(there, "server")] == ["10.0.0.5:20001", "10.0.0.5:20002"]


def test_tls_is_spoken_where_there_is_a_certificate(written: str) -> None:
    (bind,) = lines(rewrite(written, Edge("0.0.0.0", 443, 10.0, certificate="/run/x/tls.pem")), "bind")
    assert "ssl crt /run/x/tls.pem alpn http/1.1 ssl-min-ver TLSv1.2" in bind
    assert "x-forwarded-proto https" in rewrite(written, Edge("0.0.0.0", 443, 10.0, certificate="/run/x/tls.pem"))
    assert "ssl" not in lines(rewrite(written, EDGE), "bind")[0]


def test_haproxy_takes_it(written: str, empty: str, tmp_path: Path) -> None:
    for number, text in enumerate((written, empty)):
        file = tmp_path / f"{number}.cfg"
        file.write_text(rewrite(text, EDGE))
        checked = subprocess.run([haproxy.binary(), "-c", "-f", str(file)], capture_output=True, text=True, timeout=30)
        assert checked.returncode == 0, checked.stderr
        assert "missing timeouts" not in checked.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("frontend prometheus", "frontend figures"),
        ("listen stats", "listen statistics"),
        ("mode 666 level admin", "mode 660 level admin"),
        ("log 127.0.0.1:514 local0 info", "log 127.0.0.1:514 local0 debug"),
        ("errorfile 503", "errorfile 505"),
        ("frontend http_frontend", "frontend https_frontend"),
        ("    bind 127.0.0.1:1\n", "    bind 127.0.0.1:1 proto h2\n"),
        ("    bind 127.0.0.1:1\n", "    bind 127.0.0.1:1\n    bind :2\n"),
        ("\nbackend http-shoal", "\nbackend grpc-shoal"),
        ("http-request return status 404", "http-request deny status 404"),
        ("timeout client 3600s", ""),
        ("retry-on conn-failure", "retry-on all-retryable-errors"),
        ("global\n", "program other\nglobal\n"),
    ],
)
def test_what_is_not_known_is_refused(written: str, old: str, new: str) -> None:
    assert old in written
    with pytest.raises(Unfamiliar):
        rewrite(written.replace(old, new, 1), EDGE)


def test_it_cannot_be_done_twice(written: str) -> None:
    with pytest.raises(Unfamiliar):
        rewrite(rewrite(written, EDGE), EDGE)


def test_a_program_that_cannot_change_it_says_so_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "edge.json").write_text(EDGE.to_json())
    (tmp_path / "c").write_text("global\n    maxconn 1\n")
    arguments = [str(tmp_path / "edge.json"), "-db", "-f", str(tmp_path / "c")]
    tried = subprocess.run(
        [sys.executable, "-m", "shoal.cluster.serving.haproxy", *arguments], capture_output=True, text=True, timeout=30
    )
    assert tried.returncode == 1
    assert "install the Ray that Shoal names" in tried.stderr
    assert (tmp_path / "c").read_text() == "global\n    maxconn 1\n"


def test_an_edge_travels_as_json() -> None:
    edge = Edge("::", 443, 2.5, "10.0.0.5", "/run/x/tls.pem")
    assert Edge.from_json(edge.to_json()) == edge
