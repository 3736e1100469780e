"""Buckets of a user's own: what a spec says, what nodes are told, what rclone is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.actors.controller.record import SandboxRecord, from_row, to_row
from shoal.actors.network.destinations import parse_destination
from shoal.actors.node.mounts import buckets
from shoal.model.access import INSIDE
from shoal.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    SecretNotFound,
    Unavailable,
)
from shoal.model.mounts import MountSpec, check_mounts, mount_of, to_dicts
from shoal.model.secrets import SecretUse
from tests.unit.builders import spec
from tests.unit.controller_world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

CANARY = "canary-5d1f"
KEYS = {"AWS_ACCESS_KEY_ID": "ann", "AWS_SECRET_ACCESS_KEY": CANARY}
BUCKET = shoal.BucketMount(
    "data", prefix="in/", endpoint="http://127.0.0.1:9", secret=shoal.Secret.from_dict(KEYS), read_only=True
).mount_at("/data")


def test_it_travels_and_is_told_without_its_values() -> None:
    assert mount_of(to_dicts([BUCKET])[0]) == BUCKET
    told = to_dicts([replace(BUCKET, secret=BUCKET.secret and BUCKET.secret.told())])[0]
    assert told["secret"] == {"keys": sorted(KEYS)}
    assert CANARY not in repr(BUCKET)
    assert set(to_dicts([MountSpec("/v", volume="v")])[0]) == {"path", "read_only", "kind", "sub_path", "volume"}


@pytest.mark.parametrize(
    "changes",
    [
        {"bucket": ""},
        {"bucket": "No_Bucket"},
        {"bucket": "a/b"},
        {"prefix": "../x"},
        {"prefix": "/x"},
        {"endpoint": "file:///etc"},
        {"endpoint": f"http://ann:{CANARY}@example.com"},
        {"endpoint": "http://example.com/path"},
        {"region": "--x"},
        {"volume": "v"},
        {"sub_path": "x"},
        {"path": "data"},
        {"kind": "volume"},
        {"secret": SecretUse()},
    ],
)
def test_what_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        check_mounts("volumes", [replace(BUCKET, **changes)])


def test_no_error_shows_a_value() -> None:
    of_bucket = {"path": 7, "secret": {"values": {"A": CANARY}}}
    for wrong in ({"path": "/x", "secret": {"values": CANARY}}, of_bucket, CANARY):
        with pytest.raises(InvalidRequest) as caught:
            mount_of(wrong)
        assert CANARY not in str(caught.value.to_dict())


async def test_nodes_ask_for_the_credentials_of_what_lives(tmp_path: Path) -> None:
    world = World(room=20, settings={"state_dir": str(tmp_path), "pools": {"idle_slots": 0, "ready": 0}})
    controller = await world.controller()
    info, _ = await controller.parts.sandboxes.create(spec(volumes=(BUCKET,)), 10.0, True, INSIDE)
    record = controller.parts.registry.get(info.id)
    assert record is not None
    assert CANARY not in repr(info) + repr(world.disk)
    (mount,) = record.launch_spec.volumes
    assert (mount.secret, mount.bucket) == (None, "data")
    assert await controller.parts.secrets.bucket_values(mount.access) == KEYS
    restored = from_row(to_row(record))
    assert restored.launch_spec.volumes == (mount,)
    other = replace(BUCKET, secret=replace(BUCKET.secret, values={**KEYS, "AWS_ACCESS_KEY_ID": "bob"}))  # type: ignore[type-var]
    sealed = await controller.parts.secrets.admitted(spec(volumes=(other,)))
    assert SandboxRecord("sb-1", sealed, 0.0, {}).launch_spec.volumes[0].access != mount.access
    stored = replace(BUCKET, secret=SecretUse("none"))
    with pytest.raises(SecretNotFound):
        await controller.parts.sandboxes.create(spec(volumes=(stored,)), 10.0, True, INSIDE)
    await controller.parts.sandboxes.terminate(info.id, INSIDE)
    with pytest.raises(NotFound):
        await controller.parts.secrets.bucket_values(mount.access)
    await controller.kill()


def test_what_rclone_is_told() -> None:
    env = buckets.environment(BUCKET, KEYS)
    assert env["RCLONE_CONFIG_BUCKET_SECRET_ACCESS_KEY"] == CANARY
    assert (env["RCLONE_CONFIG_BUCKET_ENV_AUTH"], env["RCLONE_CONFIG"]) == ("false", "/dev/null")
    assert buckets.source(BUCKET) == "bucket:data/in"
    assert buckets.source(replace(BUCKET, prefix="")) == "bucket:data"
    assert "RCLONE_CONFIG_BUCKET_ACCESS_KEY_ID" not in buckets.environment(BUCKET, {})
    with pytest.raises(FailedPrecondition):
        buckets.environment(BUCKET, {"AWS_ACCESS_KEY_ID": "ann"})


def test_what_a_failed_look_means() -> None:
    assert isinstance(buckets.failure_of(BUCKET, 1, "api error SignatureDoesNotMatch: x"), PermissionDenied)
    assert buckets.failure_of(BUCKET, 3, "directory not found") is None
    assert isinstance(buckets.failure_of(replace(BUCKET, prefix=""), 3, "directory not found"), NotFound)
    assert isinstance(buckets.failure_of(BUCKET, 5, "last error was: connection refused"), Unavailable)


def test_the_node_reaches_no_private_endpoint_that_is_not_open() -> None:
    allow = [parse_destination("127.0.0.0/8:9000"), parse_destination("10.0.0.0/8")]
    allow.append(parse_destination("169.254.0.0/16"))
    metadata = (
        "http://169.254.169.254",
        "http://168.63.129.16",
        "http://[fd00:ec2::254]",
        "http://[::ffff:169.254.169.254]",
    )
    private = ("http://127.0.0.1:8000", "https://192.168.1.1", "http://[::1]:9000", "http://[64:ff9b::a00:1]")
    for refused in (*metadata, *private, "http://[2002:a00:1::]"):
        with pytest.raises(PermissionDenied):
            buckets.check_endpoint(refused, allow)
    for let_in in ("http://127.0.0.1:9000", "https://10.1.2.3:9", "https://1.1.1.1", "http://[2606:4700::1]"):
        buckets.check_endpoint(let_in, allow)
