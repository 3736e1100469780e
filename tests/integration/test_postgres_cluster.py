"""A cluster whose store is PostgreSQL forgets nothing when its controller and the server are killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.client import config_file
from shoal.cluster.local import processes
from tests.cluster import Machine
from tests.postgres import Postgres
from tests.processes import command_line, eventually
from tests.site import Site, make_site

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def site(machine: Machine, engine: str, postgres: Postgres) -> Iterator[Site]:
    with postgres.database() as url:
        for site in make_site(machine, engine):
            yield replace(site, environ={**site.environ, "SHOAL_STORE__URL": url})


class Api:
    """Its API, by plain requests."""

    def __init__(self, site: Site) -> None:
        found = site.file()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHOAL_CONFIG", site.environ["SHOAL_CONFIG"])
            self._token = config_file.read().servers[found.api_url or ""].token
        self._where = found.api_listens or ""

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        with closing(http.client.HTTPConnection(self._where, timeout=60)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        assert response.status < 300, data
        return json.loads(data) if data else None


def test_what_the_cluster_knows_outlives_its_controller_and_the_server(site: Site, postgres: Postgres) -> None:
    cluster = site.up()
    assert not list(site.state_dir.glob("controller/*.sqlite*")), "all of it is elsewhere"
    assert "postgresql" not in site.shoal("status", "--json"), "the URL holds a password"
    api = Api(site)
    api("POST", "/v1/environments", {"name": "dev", "quota": {"sandboxes": 3}})
    kept = api("POST", "/v1/sandboxes", {"environment": "dev", "name": "kept", "command": ["sleep", "600"]})
    gone = api("POST", "/v1/sandboxes", {"command": ["sh", "-c", "exit 7"]})
    assert api("GET", f"/v1/sandboxes/{gone['id']}/wait?timeout=30")["returncode"] == 7

    def controllers() -> list[int]:
        found = processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))
        return [each.pid for each in found if command_line(each.pid).startswith("ray::ControllerActor")]

    (before,) = controllers()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: controllers() not in ([], [before]), what="a new controller")
    assert api("POST", f"/v1/sandboxes/{kept['id']}/exec", {"argv": ["echo", "on"]})["stdout"] == "on\n"
    postgres.stop("immediate")
    postgres.start()
    ended = api("GET", f"/v1/sandboxes/{gone['id']}")
    assert (ended["reason"], ended["returncode"]) == ("completed", 7)
    assert [one["name"] for one in api("GET", "/v1/environments")["environments"]] == ["dev", "main"]
    end = api("DELETE", f"/v1/sandboxes/{kept['id']}")
    assert end["reason"] == "terminated"
    who = [entry["token"] for entry in api("GET", "/v1/audit")["entries"] if entry["action"] == "sandbox.terminate"]
    assert who == [api("GET", "/v1/tokens/self")["id"]]
