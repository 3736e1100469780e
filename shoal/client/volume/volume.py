"""`Volume`: a directory that outlives sandboxes and is shared by many of them, on all machines."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.client.arguments import environment_of
from shoal.client.cluster import Client, current
from shoal.client.contexts import Context
from shoal.client.dual_method import dual_function, dual_method
from shoal.client.html import Listed
from shoal.client.volume.files import VolumeFiles
from shoal.model import verbs
from shoal.model.errors import VolumeNotFound
from shoal.model.mounts import MountSpec
from shoal.model.validate import check_name
from shoal.model.volumes import FRESH_S, VolumeInfo, VolumesUse, VolumeUse, VolumeVersion, check_limits

_MARGIN_S = 0.1


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """A volume as it is to be mounted, for `Sandbox.create(volumes={path: …})`."""

    volume: Volume
    is_read_only: bool = False
    directory: str = ""

    def read_only(self) -> MountedVolume:
        """The same, to be read only."""
        return replace(self, is_read_only=True)

    def sub_path(self, path: str) -> MountedVolume:
        """A directory of it; made where it is missing, unless it is read-only."""
        return replace(self, directory=f"{self.directory}/{path}" if self.directory else path)

    def mount_at(self, path: str) -> MountSpec:
        """The mount at a path of the sandbox."""
        return MountSpec(path, self.is_read_only, self.directory, volume=self.volume.id)


class Volume(Context):
    """A directory that outlives sandboxes: `Sandbox.create(volumes={"/data": volume})` mounts it.

    What a process has written and closed without an error is durable, and at most half a second later seen by all
    other sandboxes. Every method blocks; its `.aio` form is awaited instead. Leaving its `with` block deletes an
    ephemeral volume, and does nothing to others.
    """

    def __init__(self, client: Client, info: VolumeInfo) -> None:
        # For `create`, `from_name` and their like.
        self._client = client
        self._info = info
        self.files = VolumeFiles(client.transport, info)
        """Its files, from outside: paths are relative to the volume."""

    # Making and finding

    @dual_function
    @staticmethod
    async def create(
        name: str,
        *,
        size: int | None = None,
        files: int | None = None,
        environment: str | None = None,
        client: Client | None = None,
    ) -> Volume:
        """A new volume. `size`: the most bytes that it holds, in whole GiB; `files`: the most files and directories.

        Raises `InvalidRequest`, `AlreadyExists`, `QuotaExceeded`, `FailedPrecondition`, `Unavailable`.
        """
        return await _made(name, size, files, environment, client)

    @dual_function
    @staticmethod
    async def from_name(
        name: str,
        *,
        create_if_missing: bool = False,
        size: int | None = None,
        files: int | None = None,
        environment: str | None = None,
        client: Client | None = None,
    ) -> Volume:
        """The volume of that name, or of that id. `create_if_missing`: a new one, if there is none, with limits as in
        `create`; else `VolumeNotFound`."""
        client = client or await current()
        owner = await environment_of(client, environment)
        try:
            return Volume(client, await client.transport.ask(verbs.volume, name, owner))
        except VolumeNotFound:
            if not create_if_missing:
                raise
        return await _made(name, size, files, owner, client, exist_ok=True)

    @dual_function
    @staticmethod
    async def ephemeral(
        *,
        size: int | None = None,
        files: int | None = None,
        environment: str | None = None,
        client: Client | None = None,
    ) -> Volume:
        """A new volume that is deleted when its `with` block is left, and else once no sandbox has mounted it for five
        minutes. Limits as in `create`."""
        return await _made(f"ephemeral-{secrets.token_hex(6)}", size, files, environment, client, ephemeral=True)

    @dual_function
    @staticmethod
    async def list(
        *, environment: str | None = None, deleted: bool = False, client: Client | None = None
    ) -> Sequence[Volume]:
        """The volumes of an environment, or (None) all that you may see, by environment and name. `deleted`: those that
        can be restored."""
        if environment is not None:
            check_name("environment", environment)
        client = client or await current()
        found = await client.transport.ask(verbs.volumes, environment, deleted)
        return Listed((Volume(client, info) for info in found), "name environment id _info.size _info.created_at")

    @dual_function
    @staticmethod
    async def restore(name: str, *, environment: str | None = None, client: Client | None = None) -> Volume:
        """Takes the deletion of a volume back: of that id, or the last that had the name; `VolumeNotFound` once it is
        removed, `AlreadyExists` if another has the name by now."""
        client = client or await current()
        owner = await environment_of(client, environment)
        return Volume(client, await client.transport.ask(verbs.restore_volume, name, owner))

    @dual_function
    @staticmethod
    async def total_usage(*, environment: str | None = None, client: Client | None = None) -> VolumesUse:
        """What all volumes of an environment (None: the token's) hold together, beside its quota."""
        client = client or await current()
        return await client.transport.ask(verbs.volumes_use, await environment_of(client, environment))

    # What it is

    @property
    def id(self) -> str:
        """`vol-…`"""
        return self._info.id

    @property
    def name(self) -> str:
        """Its name in its environment."""
        return self._info.name

    @property
    def environment(self) -> str:
        """The environment that it belongs to."""
        return self._info.environment

    @dual_method
    async def info(self) -> VolumeInfo:
        """Its limits and, as `use`, what it holds; `VolumeNotFound` once it is deleted."""
        self._info = await self._client.transport.ask(verbs.volume, self.id, self.environment, True)
        return self._info

    @dual_method
    async def usage(self) -> VolumeUse:
        """What it holds: bytes, and files with directories. It follows what is written within seconds."""
        return (await self.info.aio()).use or VolumeUse()

    # How it is mounted

    def read_only(self) -> MountedVolume:
        """It, to be mounted so that the sandbox only reads."""
        return MountedVolume(self, is_read_only=True)

    def sub_path(self, path: str) -> MountedVolume:
        """A directory of it, to be mounted alone."""
        return MountedVolume(self, directory=path)

    def mount_at(self, path: str) -> MountSpec:
        """The mount of all of it at a path of a sandbox."""
        return MountedVolume(self).mount_at(path)

    # What it does

    @dual_method
    async def commit(self) -> None:
        """Returns once all that sandboxes have written to it and closed is durable and seen by all others, which a
        reader with nothing in its caches has shown. `Unavailable` where that could not be shown; then what was closed
        without an error is kept all the same."""
        await self._client.transport.ask(verbs.commit_volume, self.id, self.environment)
        await self.reload.aio()

    @dual_method
    async def reload(self) -> None:
        """Returns once no machine shows anything that is older than this call, in files that are opened from now
        on."""
        await asyncio.sleep(FRESH_S + _MARGIN_S)

    @dual_method
    async def limit(self, *, size: int | None, files: int | None) -> VolumeInfo:
        """Changes what it may hold; None: no limit. What it holds beyond that stays."""
        check_limits(size, files)
        self._info = await self._client.transport.ask(verbs.limit_volume, self.id, self.environment, size, files)
        return self._info

    @dual_method
    async def rename(self, name: str) -> VolumeInfo:
        """Gives it another name; sandboxes that have it mounted keep it. `AlreadyExists`."""
        check_name("to", name)
        self._info = await self._client.transport.ask(verbs.rename_volume, self.id, self.environment, name)
        return self._info

    @dual_method
    async def delete(self, *, now: bool = False) -> None:
        """Deletes it. Sandboxes that have it mounted keep it. `Volume.restore` takes that back within
        `volumes.grace` (a day), unless `now`."""
        await self._client.transport.ask(verbs.delete_volume, self.id, self.environment, now)

    # Its versions

    @dual_method
    async def snapshot(self, version: str) -> VolumeVersion:
        """Keeps all that is closed in it now, under a name. A version shares its data with the files: it takes no time
        and no storage for them, only some for their names. `AlreadyExists`, `QuotaExceeded`, `Unavailable`."""
        check_name("version", version)
        self._info = await self._client.transport.ask(verbs.snapshot_volume, self.id, self.environment, version)
        return self._info.version(version)

    @dual_method
    async def versions(self) -> Sequence[VolumeVersion]:
        """Its versions, the oldest first."""
        self._info = await self._client.transport.ask(verbs.volume, self.id, self.environment)
        return self._info.versions

    @dual_method
    async def revert(self, version: str) -> None:
        """Replaces all its files by those of a version, at once; the version stays. `FailedPrecondition` (state
        `mounted`) while a sandbox has it mounted."""
        self._info = await self._client.transport.ask(verbs.revert_volume, self.id, self.environment, version)

    @dual_method
    async def delete_version(self, version: str) -> None:
        """Removes a version."""
        self._info = await self._client.transport.ask(verbs.delete_version, self.id, self.environment, version)

    @dual_method
    async def _leave(self) -> None:
        if self._info.ephemeral:
            await self.delete.aio(now=True)

    def __repr__(self) -> str:
        return f"<Volume {self._info.name} ({self._info.id})>"


async def _made(
    name: str,
    size: int | None,
    files: int | None,
    environment: str | None,
    client: Client | None,
    *,
    ephemeral: bool = False,
    exist_ok: bool = False,
) -> Volume:
    check_name("name", name)
    check_limits(size, files)
    client = client or await current()
    owner = await environment_of(client, environment)
    return Volume(
        client, await client.transport.ask(verbs.create_volume, name, owner, size, files, ephemeral, exist_ok)
    )
