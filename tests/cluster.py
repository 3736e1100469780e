"""Fixtures: an engine, and a cluster of one machine on it, for the whole session.

Both are brought up by the code of `shoal up`, in a state directory, with a bridge and a subnet of their own, so that
they can stand beside a cluster that is in use. `SHOAL_TEST_ENGINE` names a Docker engine to use in place of an own one,
`SHOAL_TEST_CLUSTER_ENGINE` the kind of engine that clusters use (default: oci, or else docker).
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shoal.model.cluster_file import READ_ON_IMPORT
from tests import leaks
from tests.ports import free_port

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.cluster_file import ClusterFile
    from shoal.model.settings import Settings
    from shoal.transport.contract import Transport


@dataclass(frozen=True)
class Machine:
    """Where a session's engine and cluster live. `environ`: what a child process needs to find them."""

    state_dir: Path
    settings: Settings
    environ: dict[str, str]


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs, and a client of this process's connected to it, which calls without one use."""

    file: ClusterFile
    machine: Machine
    client: Client


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Directories, names and settings of this session's own; the environment of this process says so."""
    from shoal.model.settings import Settings

    state_dir = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))  # short: sockets lie below it
    run_dir = state_dir / "run"
    suffix = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=5))
    environ = {
        "SHOAL_STATE_DIR": str(state_dir),
        "SHOAL_RUN_DIR": str(run_dir),
        "SHOAL_ENGINE": cluster_engine(),
        "SHOAL_NETWORK__BRIDGE": f"shoal-{suffix}",
        "SHOAL_NETWORK__SUBNET": str(free_subnet()),
        "SHOAL_NODE__CPU_OVERCOMMIT": "4",
        "SHOAL_API__PORT": "0",
        "SHOAL_CONFIG": str(state_dir / "config.toml"),
        # The one address of this machine at which tests may have what the node reaches for sandboxes: a bucket.
        "SHOAL_NETWORK__ALLOW": f'["127.{random.randint(1, 250)}.{random.randint(0, 250)}.9"]',
        "SHOAL_HOST__CA_BUNDLE": "true",
        "SHOAL_HOST__PROXY": "true",
        "SHOAL_HOST__PACKAGE_INDEX": "true",
        # All that a cluster can tell of itself; of traces only those that a caller records.
        "SHOAL_TELEMETRY__LOG_FORMAT": "json",
        "SHOAL_TELEMETRY__SINK": f"file://{state_dir}/shipped.ndjson",
        "SHOAL_TELEMETRY__TRACES": f"http://127.0.0.1:{free_port()}",
        "SHOAL_TELEMETRY__TRACE_SHARE": "0",
    }
    if cluster_engine() == "docker":
        environ["SHOAL_ENGINE_ADDRESS"] = os.environ.get("SHOAL_TEST_ENGINE") or f"unix://{run_dir}/engine.sock"
    if os.environ.get("SHOAL_TEST_RUNTIME") == "runsc":
        from tests.runsc import runsc

        environ |= {"SHOAL_SANDBOX__RUNTIME": "runsc", "SHOAL_NODE__RUNSC": str(runsc())}
    (state_dir / "cache").symlink_to(test_cache())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SHOAL_", "RAY_")) and "TEST" not in name]:
            if name not in READ_ON_IMPORT:
                patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        try:
            yield Machine(state_dir, Settings(), environ)
        finally:
            shutil.rmtree(state_dir)


@pytest.fixture(scope="session")
def engine(machine: Machine) -> Iterator[str]:
    """The address of a Docker engine that has the base image."""
    from shoal.cluster.local import engines, packages

    own = f"unix://{machine.settings.run_dir}/engine.sock"
    address = os.environ.get("SHOAL_TEST_ENGINE") or own
    settings = machine.settings.model_copy(update={"engine": "docker", "engine_address": address})
    packages.ensure(packages.NODE_PROGRAMS, printing)
    found = engines.choose(settings).kind.provide(settings, printing)
    try:
        found.ensure_image(settings.sandbox.image, settings.state_dir / "cache", printing)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHOAL_TEST_ENGINE", found.address)
            yield found.address
    finally:
        if found.answers():  # the session's cluster, which ends first, may have stopped it with its own
            found.stop(keep=False)


@pytest.fixture(scope="session")
def direct_engine(machine: Machine) -> None:
    """What the engine `oci` needs of this machine, and the base image's archive."""
    from shoal.cluster.local import packages
    from shoal.cluster.local.engines.oci import PROGRAMS
    from shoal.images import base

    packages.ensure({**packages.NODE_PROGRAMS, **packages.BASE_IMAGE_PROGRAMS, **PROGRAMS}, printing)
    base.build(base.recipe(), machine.state_dir / "cache", printing)


@pytest.fixture(scope="session")
def clusters_engine(request: pytest.FixtureRequest, machine: Machine) -> str:
    """The address of the engine that all clusters of this session share. It has the base image."""
    if cluster_engine() == "docker":
        address: str = request.getfixturevalue("engine")
        return address
    from shoal.cluster.local import engines

    request.getfixturevalue("direct_engine")
    found = engines.choose(machine.settings).kind.provide(machine.settings, printing)
    found.ensure_image(machine.settings.sandbox.image, machine.state_dir / "cache", printing)
    return found.address


@pytest.fixture(scope="session")
def cluster(clusters_engine: str, machine: Machine) -> Iterator[Cluster]:
    """A cluster that runs. At the end nothing of it may be left."""
    from shoal.client.cluster import connect
    from shoal.cluster.local import up as local_cluster

    up = local_cluster.up(machine.settings, report=printing)
    try:
        client = connect()
        try:
            assert type(client.transport).__name__ == "RayTransport"
            yield Cluster(up.cluster, machine, client)
        finally:
            _disconnect(client)
    finally:
        local_cluster.down(machine.settings, report=printing)
    leaks.assert_nothing_left(up.cluster)


@pytest.fixture(scope="session")
def http_client(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster's API, with the token that `shoal up` left for this user."""
    from shoal.client import cluster as client
    from shoal.client import config_file
    from shoal.transport.http_server import normal_url

    url = normal_url(cluster.file.api_url)
    made = client.Client(_http_transport(url, config_file.read().servers[url].token))
    yield made
    made.close()


@pytest.fixture(params=["ray", "http"])
def both_ways(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Client]:
    """The client that calls without one use: through Ray, then through the API. For suites that must hold over both."""
    from shoal.client import cluster as client

    chosen: Client = cluster.client if request.param == "ray" else request.getfixturevalue("http_client")
    client.use(chosen)
    try:
        yield chosen
    finally:
        client.use(cluster.client)


@dataclass
class LeakCheck:
    """What the session's cluster had before the first test of a module that uses it; None if no test does."""

    cluster: Cluster | None = None
    before: leaks.Found | None = None


@pytest.fixture(scope="module", autouse=True)
def leak_check() -> Iterator[LeakCheck]:
    """After a module, the session's cluster has no more than before it. Other fixtures of the module end first."""
    check = LeakCheck()
    yield check
    if check.cluster is not None:
        leaks.assert_none(check.cluster.file, check.before)


@pytest.fixture(autouse=True)
def needs(request: pytest.FixtureRequest, leak_check: LeakCheck) -> None:
    """A test that is marked `engine` has one. If it uses the cluster, its module is checked for leaks."""
    marker = request.node.get_closest_marker("engine")
    if marker is None:
        return
    if "oci" in marker.args:
        request.getfixturevalue("direct_engine")
    elif "clusters_engine" not in request.fixturenames:
        request.getfixturevalue("engine")
    if "cluster" in request.fixturenames and leak_check.cluster is None:
        leak_check.cluster = request.getfixturevalue("cluster")
        leak_check.before = leaks.look(leak_check.cluster.file)


def cluster_engine() -> str:
    """The kind of engine that the session's clusters use."""
    return os.environ.get("SHOAL_TEST_CLUSTER_ENGINE", "oci")


def _http_transport(url: str, token: str | None) -> Transport:
    from shoal.transport.http import HttpTransport

    return HttpTransport(url, token)


def _disconnect(client: Client) -> None:
    import ray

    client.close()
    ray.shutdown()


def test_cache() -> Path:
    """Outside of the tree, and kept from one session to the next: building the base image takes half a minute."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = root / "shoal-tests"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


test_cache.__test__ = False  # type: ignore[attr-defined]


def free_subnet(*others: str) -> IPv4Network:
    """One that this machine has no route into, and that is none of `others`."""
    taken = [IPv4Network(network) for network in (*_routes(), *others)]
    free = [IPv4Network(f"10.{number}.0.0/16") for number in range(214, 255)]
    return random.choice([subnet for subnet in free if not any(subnet.overlaps(network) for network in taken)])


def _routes() -> list[str]:
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return [f"{_address(row[1])}/{_address(row[7])}" for row in rows if row[7] != "00000000"]


def _address(little_endian: str) -> str:
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(little_endian)))


@contextmanager
def printing(text: str) -> Iterator[Any]:
    """To the real stderr, past the capture of tests: the first time this takes a while."""
    os.write(2, f"[{text} …]\n".encode())
    yield
