"""How Ray is started: what keeps its state, and where it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shoal.cluster.local import ray as local_ray
from shoal.cluster.local.ray import external_redis
from shoal.model.errors import InvalidRequest
from tests.ports import free_port


def test_without_a_redis_nothing_is_said_of_one() -> None:
    told = external_redis(None, "kept")
    assert (dict(told.environ), told.arguments) == ({}, ())


@pytest.mark.parametrize(
    ("url", "address", "arguments"),
    [
        ("redis://10.0.0.7", "10.0.0.7:6379", ()),
        ("redis://:p%40ss@cache.example:7000/", "cache.example:7000", ("--redis-password=p@ss",)),
        ("rediss://ray:x@10.0.0.7", "rediss://10.0.0.7:6379", ("--redis-username=ray", "--redis-password=x")),
    ],
)
def test_a_redis_is_named_as_ray_takes_it(url: str, address: str, arguments: tuple[str, ...]) -> None:
    told = external_redis(url, "kept")
    assert told.environ == {"RAY_REDIS_ADDRESS": address, "RAY_external_storage_namespace": "kept"}
    assert told.arguments == arguments


@pytest.mark.parametrize(
    "url", ["", "10.0.0.7:6379", "http://10.0.0.7", "redis://", "redis://h:0", "redis://h:x", "redis://h/3"]
)
def test_what_is_no_redis_is_told(url: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        external_redis(url, "kept")
    assert raised.value.field == "store.redis"


def test_a_port_that_is_taken_at_any_address_is_not_chosen() -> None:
    """At an address other than 127.0.0.1 Ray listens at all of them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not local_ray.is_free("0.0.0.0", taken.getsockname()[1])
    assert local_ray.is_free("0.0.0.0", free_port())


def test_a_token_of_another_cluster_is_told_by_its_field(tmp_path: Path) -> None:
    log = tmp_path / "start.log"
    log.write_text("ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: …\nseen at: /x\n")
    refused = local_ray._not_started(log)
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "token"
    log.write_text("OSError: no space left on device\nbye\n")
    assert "no space left" in local_ray._not_started(log).message
