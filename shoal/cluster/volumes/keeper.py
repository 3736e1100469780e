"""Volumes by JuiceFS: one file system each, made and removed by its program."""

from __future__ import annotations

import json
from typing import Any

from shoal.actors.node.mounts.juicefs import environment, juicefs, run_juicefs
from shoal.actors.objects import ObjectAccess
from shoal.actors.volumes import VolumeAccess, VolumeKeeper
from shoal.cluster.objects.access import S3Access
from shoal.cluster.volumes.metadata import Metadata
from shoal.model.errors import FailedPrecondition, Unavailable
from shoal.model.volumes import LEAST_SIZE, VolumeUse

_CALL_S = 60.0
_DESTROY_S = 3600.0
_TOLD = 400


class JuiceKeeper(VolumeKeeper):
    """`metadata`: where the metadata of all of them is."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.only_on_head = metadata.only_on_head

    def create(self, volume_id: str, size: int | None, files: int | None, storage: ObjectAccess) -> None:
        self._metadata.make(volume_id)
        access = self.access(volume_id, storage)
        _run(
            access,
            "format",
            "--storage=s3",
            f"--bucket={access.bucket}",
            "--trash-days=0",
            *_limits(size, files),
            access.metadata,
            volume_id,
        )
        self._metadata.guard(volume_id)

    def access(self, volume_id: str, storage: ObjectAccess) -> VolumeAccess:
        if not isinstance(storage, S3Access):
            raise FailedPrecondition("volumes need an object storage that speaks S3", state="no_s3")
        address = self._metadata.address(volume_id)
        env = _environment(storage)
        if address.password is not None:
            env["META_PASSWORD"] = address.password
        return VolumeAccess(address.url, _bucket(storage), env, self.only_on_head)

    def limit(self, volume_id: str, size: int | None, files: int | None, storage: ObjectAccess) -> None:
        _run(access := self.access(volume_id, storage), "config", "--yes", access.metadata, *_limits(size, files))

    def use(self, volume_id: str, storage: ObjectAccess) -> VolumeUse:
        # Less what JuiceFS counts for the directory that holds all.
        found = self._status(volume_id, storage)["Stat"]
        return VolumeUse(max(0, found["UsedSpace"] - 4096), max(0, found["UsedInodes"] - 1))

    def sync(self) -> None:
        self._metadata.sync()

    def destroy(self, volume_id: str, storage: ObjectAccess) -> None:
        try:
            identity = self._status(volume_id, storage)["Setting"]["UUID"]
        except Unavailable as error:
            if "not formatted" not in error.message:
                raise
        else:
            access = self.access(volume_id, storage)
            _run(access, "destroy", "--yes", "--force", access.metadata, identity, timeout_s=_DESTROY_S)
        self._metadata.remove(volume_id)

    def _status(self, volume_id: str, storage: ObjectAccess) -> Any:
        access = self.access(volume_id, storage)
        return json.loads(_run(access, "status", access.metadata))


def _limits(size: int | None, files: int | None) -> list[str]:
    """0: none."""
    return [f"--capacity={(size or 0) // LEAST_SIZE}", f"--inodes={0 if files is None else files + 1}"]


def _bucket(storage: S3Access) -> str:
    """The URL of the bucket."""
    if storage.endpoint is not None:
        scheme, _, host = storage.endpoint.partition("://")
        path_style = storage.path_style
        return f"{scheme}://{host}/{storage.bucket}" if path_style else f"{scheme}://{storage.bucket}.{host}"
    return f"https://{storage.bucket}.s3.{storage.region or 'us-east-1'}.amazonaws.com"


def _environment(storage: S3Access) -> dict[str, str]:
    """The credentials go the way of AWS's own programs, and so stand in no arguments and in no database."""
    env: dict[str, str] = {}
    if storage.keys is not None:
        env |= {"AWS_ACCESS_KEY_ID": storage.keys.access, "AWS_SECRET_ACCESS_KEY": storage.keys.secret}
        if storage.keys.session is not None:
            env["AWS_SESSION_TOKEN"] = storage.keys.session
    elif storage.credentials is not None:
        env["AWS_SHARED_CREDENTIALS_FILE"] = storage.credentials
    if storage.region is not None:
        env["AWS_REGION"] = storage.region
    if storage.ca is not None:
        env["SSL_CERT_FILE"] = storage.ca
    return env


def _run(access: VolumeAccess, *arguments: str, timeout_s: float = _CALL_S) -> str:
    """What JuiceFS answers; `Unavailable` with what it says where it fails."""
    done = run_juicefs(juicefs(), *arguments, timeout_s=timeout_s, env=environment(access))
    if done.returncode != 0:
        said = " | ".join(line for line in done.stderr.splitlines() if "FATAL" in line or "ERROR" in line)
        raise Unavailable(f"juicefs {arguments[0]} failed: {(said or done.stderr.strip())[-_TOLD:]}")
    return done.stdout
