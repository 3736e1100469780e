"""`shoal up` and `shoal down` on a real machine: again, at once, interrupted, and with half of it dead.

The first has a cluster and an engine of its own beside the session's.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shoal.client import config_file
from shoal.cluster.local import processes
from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile, ProcessRef
from tests import leaks
from tests.cluster import Cluster, Machine
from tests.processes import command_line
from tests.site import Site, make_site

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture
def site(machine: Machine, clusters_engine: str) -> Iterator[Site]:
    yield from make_site(machine, clusters_engine)


@pytest.fixture
def own_site(machine: Machine) -> Iterator[Site]:
    """With an engine of its own, which does not run yet."""
    yield from make_site(machine, None)


@pytest.fixture(scope="module", autouse=True)
def wrong_token(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """Somebody tries to join with a wrong token, which takes Ray twenty seconds: other tests go on meanwhile."""
    wrong = tmp_path_factory.mktemp("wrong") / "token"
    wrong.write_text("0" * 64)
    with try_ray(cluster, str(wrong)) as trying:
        yield trying
        trying.kill()


def try_ray(cluster: Cluster, token: str) -> subprocess.Popen[str]:
    code = f"import ray; ray.init(address={cluster.file.ray_address!r}, log_to_driver=False); print('IN')"
    environ = {**os.environ, **cluster_file.ray_environment(cluster.file), "RAY_AUTH_TOKEN_PATH": token}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_all(found: list[ProcessRef]) -> None:
    for process in found:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # workers end by themselves once their raylet is gone
    deadline = time.monotonic() + 30
    while any(map(processes.alive, found)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ray_of(cluster: ClusterFile) -> list[ProcessRef]:
    return processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))


def gateways(cluster: ClusterFile) -> list[ProcessRef]:
    return [each for each in ray_of(cluster) if "gateway" in processes.command_line(each.pid)]


@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_life_with_an_engine_of_its_own(own_site: Site) -> None:
    commands = [own_site.start("up", "--json") for _ in range(2)]
    answers = [json.loads(command.communicate(timeout=250)[0]) for command in commands]
    assert sorted(answer["started"] for answer in answers) == [False, True], "one starts, the other finds"
    assert answers[0]["cluster"] == answers[1]["cluster"]
    assert all(answer["nodes"] == 1 for answer in answers)

    first = own_site.file()
    assert first.engine is not None
    assert own_site.shoal("run", "shoal/base", "echo", "hello") == "hello\n"
    os.kill(first.engine.pid, signal.SIGSTOP)  # it hangs, and is not dead
    with own_site.start("up", "--json") as again:
        try:
            time.sleep(5)
        finally:
            os.kill(first.engine.pid, signal.SIGCONT)
        assert json.loads(again.communicate(timeout=100)[0])["started"] is False
    assert own_site.file() == first, "a second `up` changes nothing"

    own_site.shoal("run", "-d", "--name", "web", "shoal/base")
    for name, restart in (("kept", "no"), ("back", "always")):
        own_site.shoal("run", "-d", "--name", name, "--persistent", "--restart", restart, "shoal/base")
        own_site.shoal("exec", name, "sh", "-c", f"echo {name} > /root/file")
    kill_all([first.engine])
    assert json.loads(own_site.shoal("status", "--json", code=69))["engine"] is False
    kill_all(ray_of(first))
    own_site.shoal("ls", code=69)
    mended = own_site.up()
    assert (mended.cluster, mended.engine == first.engine, mended.ray == first.ray) == (first.cluster, False, False)
    await_state(own_site, back="running", kept="stopped")
    leaks.assert_none(mended)
    assert own_site.shoal("exec", "back", "cat", "/root/file") == "back\n"
    assert own_site.shoal("run", "--name", "web", "shoal/base", "echo", "again") == "again\n"

    own_site.shoal("run", "-d", "shoal/base")
    # The gateway lives on for a while: nobody is left who would stop it.
    everything, left = ray_of(mended), gateways(mended)
    kill_all(sorted((p for p in everything if p not in left), key=lambda p: p not in mended.ray))
    assert processes.alive(left[0])
    cluster_file.path_in(own_site.state_dir).write_text("{")
    assert "shoal down" in own_site.errors("up", code=78), "the remedy, which works"
    own_site.shoal("down")
    leaks.assert_nothing_left(mended)
    assert cluster_file.read(own_site.state_dir) is None
    again = own_site.up()
    await_state(own_site, back="running", kept="stopped")
    own_site.shoal("start", "kept")
    for name in ("kept", "back"):
        assert own_site.shoal("exec", name, "cat", "/root/file") == f"{name}\n"
    own_site.shoal("down")
    leaks.assert_nothing_left(again)
    own_site.shoal("down", "--purge")
    assert {path.name for path in own_site.state_dir.iterdir()} == {"lock"}


def await_state(site: Site, **wanted: str) -> None:
    """Waits until there are exactly these sandboxes, by name, in these states."""
    deadline = time.monotonic() + 60
    while (found := {s["spec"]["name"]: s["state"] for s in json.loads(site.shoal("ls", "--json"))}) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def test_an_up_that_fails_leaves_nothing(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site.shoal("up", "--port", str(taken.getsockname()[1]), code=2)
    site.shoal("up", "--address-ip", "203.0.113.1", code=2)
    assert_clean(site)


@pytest.mark.parametrize(
    ("previous", "number"),
    [pytest.param(None, signal.SIGINT, marks=pytest.mark.long), ("✓ Starting Ray", signal.SIGTERM)],
)
def test_an_up_that_is_interrupted_leaves_nothing(site: Site, previous: str | None, number: signal.Signals) -> None:
    with site.start("up") as command:
        assert command.stderr is not None
        deadline = time.monotonic() + 60
        while previous is not None and previous not in (line := command.stderr.readline()):
            assert line, "it ended before"
        while not ray_processes(site):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        command.send_signal(number)
        _, errors = command.communicate(timeout=60)
    assert command.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert_clean(site)


def ray_processes(site: Site) -> list[ProcessRef]:
    identity = site.state_dir / "cluster-id"
    return processes.of_cluster(identity.read_text(), site.state_dir / "ray" / "s") if identity.exists() else []


def assert_clean(site: Site) -> None:
    assert cluster_file.read(site.state_dir) is None
    assert ray_processes(site) == []
    assert not (site.state_dir / "run").exists()
    assert not Path("/sys/class/net", site.environ["SHOAL_NETWORK__BRIDGE"]).exists()
    assert not (site.state_dir / "auth_token").exists()
    assert not (site.state_dir / "secret").exists()


def test_ray_listens_on_the_loopback_only(cluster: Cluster) -> None:
    """But for what Serve's replicas have among themselves: `test_serving` shows that they ask for Ray's token."""
    ours = {process.pid for process in ray_of(cluster.file) if "ServeReplica" not in command_line(process.pid)}
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = [line.split()[3] for line in listening if any(f"pid={pid}," in line for pid in ours)]
    assert len(addresses) >= 3
    assert all(address.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:")) for address in addresses), addresses


def test_ray_lets_nobody_in_without_the_token(cluster: Cluster, wrong_token: subprocess.Popen[str]) -> None:
    with try_ray(cluster, cluster.file.auth_token_path) as right:
        assert right.communicate(timeout=100)[0] == "IN\n"
    out, errors = wrong_token.communicate(timeout=100)
    assert "IN" not in out
    assert "oken" in errors


def test_secrets_are_for_their_owner_only(cluster: Cluster) -> None:
    for path in (
        cluster.file.auth_token_path,
        cluster.file.secret_path,
        cluster_file.path_in(cluster.machine.state_dir),
    ):
        assert Path(path).stat().st_mode & 0o077 == 0, path


def test_secrets_are_on_no_command_line_and_in_no_log(cluster: Cluster) -> None:
    secrets = [Path(cluster.file.auth_token_path).read_text(), Path(cluster.file.secret_path).read_bytes().hex()]
    token = config_file.read().servers[cluster.file.api_url].token
    assert token is not None
    host, _, port = cluster.file.api_listens.rpartition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("GET", f"/v1/tokens/self?shoal_token={token}", headers={"Authorization": f"Bearer {token}"})
        connection.getresponse().read()
    secrets.append(token)
    for process in ray_of(cluster.file):
        line = command_line(process.pid)
        assert not any(secret in line for secret in secrets)
    read = 0
    for path in leaks.files_below(cluster.machine.state_dir, "engine"):
        if path.is_file() and path.name not in ("auth_token", "secret", "config.toml"):
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                continue  # a record of a container, say, that went meanwhile
            read += 1
            assert not any(secret.encode() in text for secret in secrets), path
    assert read > 20, "Ray's logs are among them"


def test_doctor_finds_nothing_missing(cluster: Cluster) -> None:
    examined = subprocess.run(
        [sys.executable, "-m", "shoal.cli.main", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    checks = json.loads(examined.stdout)
    assert [check for check in checks if not check["ok"]] == []
    assert examined.returncode == 0
    assert {"relay", "controller", "ray", "base image", "token", "api"} <= {check["name"] for check in checks}
