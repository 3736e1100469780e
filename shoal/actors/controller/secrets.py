"""Secrets: the verbs that store them (see `shoal.model.verbs`), and how sandboxes get them. A value is in the clear
only while a call is under way; what is kept, in memory as in the store, is encrypted."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.record import SandboxRecord, bucket_access, secrets_of
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.secret_keys import SecretKeys, key_id
from shoal.actors.controller.store import Change, Restored
from shoal.model import verbs
from shoal.model.access import Caller
from shoal.model.errors import AlreadyExists, InvalidRequest, NotFound, QuotaExceeded, SecretNotFound
from shoal.model.secrets import (
    MOST_USED_BYTES,
    SecretInfo,
    SecretUse,
    SecretValues,
    StoredSecret,
    check_uses,
    check_values,
    gathered,
    packed,
    unpacked,
)
from shoal.model.spec import SandboxSpec
from shoal.model.validate import check_name
from shoal.model.visibility import check_sees_environment, sees

MOST_SECRETS = 1_000
"""Of one environment."""


@dataclass(slots=True)
class Secrets:
    """The secrets of all environments. `mark_key`: marks inline values, so that a create that is sent twice is known as
    the same; `clock`: unix seconds."""

    writer: RecordWriter
    registry: Registry
    accounts: Accounts
    keys: SecretKeys
    mark_key: bytes
    clock: Callable[[], float] = time.time
    _stored: dict[tuple[str, str], StoredSecret] = field(default_factory=dict)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One change at a time: each is in memory once it is on record."""

    def restore(self, restored: Restored) -> None:
        """Takes over what the store kept."""
        self._stored = {(each.info.environment, each.info.name): each for each in restored.secrets}
        self.accounts.secrets_of = self.ids_of
        self.accounts.forget_secrets = self.forget

    # -- verbs --------------------------------------------------------------------------------------

    async def create(
        self, name: str, values: Mapping[str, str], environment: str, replace: bool, caller: Caller
    ) -> SecretInfo:
        """Stores a secret, or (`replace`) other values in place of one of that name."""
        check_name("name", name)
        check_sees_environment(caller, environment)
        size = check_values("values", values)
        async with self._changing:
            self.accounts.quota(environment)  # or there is no such environment
            before = self._stored.get((environment, name))
            if before is not None and not replace:
                raise AlreadyExists(
                    f"name: there is a secret {name!r} in environment {environment!r}; replace it, or choose another",
                    field="name",
                )
            if before is None and len(self.ids_of(environment)) >= MOST_SECRETS:
                raise QuotaExceeded(f"environment {environment!r} has {MOST_SECRETS} secrets, the most; delete some")
            await self._load()
            now = self.clock()
            made = self._sealed_secret(
                SecretInfo(
                    name,
                    environment,
                    tuple(sorted(values)),
                    now if before is None else before.info.created_at,
                    now,
                    1 if before is None else before.info.version + 1,
                    size,
                ),
                packed(values),
            )
            entry = audited(verbs.create_secret, caller, target=name, environment=environment)
            await self.writer.write(Change(secrets=(made,), audit=(entry,)))
            self._stored[environment, name] = made
        return made.info

    def secrets(self, environment: str | None, caller: Caller) -> list[SecretInfo]:
        """Those that the caller may see, by environment and name."""
        if environment is not None:
            self.accounts.environment(environment, caller)
        wanted = [key for key in self._stored if sees(caller, key[0]) and environment in (None, key[0])]
        return [self._stored[key].info for key in sorted(wanted)]

    def secret(self, name: str, environment: str, caller: Caller) -> SecretInfo:
        """One."""
        check_sees_environment(caller, environment)
        return self._known(name, environment, "name").info

    async def delete(self, name: str, environment: str, caller: Caller) -> None:
        """Deletes one. Sandboxes that have its values keep them until they stop."""
        check_sees_environment(caller, environment)
        async with self._changing:
            known = self._known(name, environment, "name")
            entry = audited(verbs.delete_secret, caller, target=name, environment=environment)
            await self.writer.write(Change(removed_secrets=(known.info.id,), audit=(entry,)))
            del self._stored[environment, name]

    async def rotate(self, caller: Caller) -> list[SecretInfo]:
        """Encrypts all anew with a new key."""
        async with self._changing:
            await self._load()
            newest = await self.keys.renew()
            stale = [each for each in self._stored.values() if each.info.key_id != newest]
            renewed = [self._sealed_secret(each.info, self._opened(each)) for each in stale]
            entry = audited(verbs.rotate_secrets, caller, target=newest)
            await self.writer.write(Change(secrets=renewed, audit=(entry,)))
            self._stored |= {(each.info.environment, each.info.name): each for each in renewed}
        inline = [record for record in self.registry.live() if any(use.sealed for use in secrets_of(record.spec))]
        for record in inline:
            await self.writer.put(record, change=lambda record=record: self._renewed(record))  # type: ignore[misc]
        return self.secrets(None, caller)

    # -- for sandboxes ------------------------------------------------------------------------------

    async def admitted(self, spec: SandboxSpec) -> SandboxSpec:
        """The spec with its inline secrets sealed, once its secrets are there. Raises `InvalidRequest`,
        `SecretNotFound`, `FailedPrecondition` (state `no_key`)."""
        check_uses("secrets", spec.secrets)
        size = 0
        for use in secrets_of(spec):
            size += self._size_of(use, spec.environment)
        if size > MOST_USED_BYTES:
            raise InvalidRequest(
                f"secrets: they have {size:,} bytes, more than {MOST_USED_BYTES:,}; give fewer", field="secrets"
            )
        if any(use.values is not None for use in secrets_of(spec)):
            await self._load()
        return self._changed(spec, lambda use: self._sealed_use(use, spec.environment))

    async def values_for(self, spec: SandboxSpec) -> SecretValues | None:
        """What the processes of a sandbox that starts now get. Raises as `admitted`."""
        if not spec.secrets:
            return None
        await self._load()
        return gathered(spec.secrets, [self.values_of(use, spec.environment) for use in spec.secrets])

    async def bucket_values(self, access: str) -> dict[str, str]:
        """For nodes: the credentials of a bucket that a living sandbox mounts; none for an open one. `access`: as in
        `launch_spec`."""
        for record in self.registry.live():
            for mount in record.spec.volumes:
                if mount.kind == "bucket" and bucket_access(record.spec.environment, mount) == access:
                    if mount.secret is None:
                        return {}
                    await self._load()
                    return self.values_of(mount.secret, record.spec.environment)
        raise NotFound(f"no sandbox that lives mounts {access}")

    def values_of(self, use: SecretUse, environment: str) -> dict[str, str]:
        """The values of one secret. After `load`."""
        if use.values is not None:
            return dict(use.values)
        if use.name is None:
            return unpacked(self.keys.unseal(use.sealed, _inline(environment)))
        return unpacked(self._opened(self._with_keys(use, environment)))

    async def load(self) -> None:
        """Has the keys at hand."""
        await self._load()

    async def sealed(self, use: SecretUse, environment: str) -> SecretUse:
        """One secret without values in the clear, once it is there. As `admitted`."""
        check_uses("secrets", [use])
        self._size_of(use, environment)
        await self._load()
        return self._sealed_use(use, environment)

    # -- inside -------------------------------------------------------------------------------------

    def ids_of(self, environment: str) -> Sequence[str]:
        """The ids of an environment's secrets."""
        return [each.info.id for (owner, _), each in self._stored.items() if owner == environment]

    def forget(self, environment: str) -> None:
        """The environment was deleted, and its secrets with it."""
        for key in [key for key in self._stored if key[0] == environment]:
            del self._stored[key]

    async def _load(self) -> None:
        if self.keys.loaded:
            return
        sealed = bool(self._stored) or any(secrets_of(record.spec) for record in self.registry.live())
        await self.keys.load(may_make=not sealed)

    def _known(self, name: str, environment: str, field: str) -> StoredSecret:
        found = self._stored.get((environment, name))
        if found is None:
            raise SecretNotFound(
                f"{field}: there is no secret {name[:64]!r} in environment {environment!r}; `shoal secret ls` lists "
                "those that there are",
                field=field,
            )
        return found

    def _with_keys(self, use: SecretUse, environment: str) -> StoredSecret:
        """The stored secret, which has the keys that it must have."""
        found = self._known(str(use.name), environment, "secrets")
        missing = [key for key in use.keys if key not in found.info.keys]
        if missing:
            raise SecretNotFound(
                f"secrets: {use.name!r} has no {missing[0]!r}, only {', '.join(found.info.keys)[:200]}; add it",
                field="secrets",
            )
        return found

    def _size_of(self, use: SecretUse, environment: str) -> int:
        if use.name is not None:
            return self._with_keys(use, environment).info.bytes
        return len(use.sealed) if use.values is None else check_values("secrets", use.values)

    def _opened(self, secret: StoredSecret) -> bytes:
        return self.keys.unseal(secret.sealed, secret.info.id)

    def _sealed_secret(self, info: SecretInfo, data: bytes) -> StoredSecret:
        return StoredSecret(replace(info, key_id=self.keys.newest), self.keys.seal(data, info.id))

    def _sealed_use(self, use: SecretUse, environment: str) -> SecretUse:
        if use.values is None:
            return use
        data = packed(use.values)
        mark = hmac.new(self.mark_key, b"inline secret\n" + data, hashlib.sha256).hexdigest()[:32]
        sealed = self.keys.seal(data, _inline(environment))
        return replace(use, keys=tuple(sorted(use.values)), values=None, mark=mark, sealed=sealed)

    def _renewed(self, record: SandboxRecord) -> dict[str, object]:
        """The attributes of a record whose inline secrets are encrypted anew."""
        context = _inline(record.spec.environment)
        return {"spec": self._changed(record.spec, lambda use: self._resealed(use, context)), "_spec_row": None}

    def _changed(self, spec: SandboxSpec, change: Callable[[SecretUse], SecretUse]) -> SandboxSpec:
        """The spec with all its secrets changed."""
        uses = tuple(map(change, spec.secrets))
        mounts = (
            mount if mount.secret is None else replace(mount, secret=change(mount.secret)) for mount in spec.volumes
        )
        return replace(spec, secrets=uses, volumes=tuple(mounts))

    def _resealed(self, use: SecretUse, context: str) -> SecretUse:
        if not use.sealed or key_id(use.sealed) == self.keys.newest:
            return use
        return replace(use, sealed=self.keys.seal(self.keys.unseal(use.sealed, context), context))


def _inline(environment: str) -> str:
    """What an inline secret is bound to."""
    return f"{environment}/"
