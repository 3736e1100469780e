"""Environments and API tokens. They are in memory, and on record before they count."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.store import Change, Restored
from shoal.model import verbs
from shoal.model.access import (
    ANY_ENVIRONMENT,
    MAIN_ENVIRONMENT,
    Caller,
    Environment,
    Quota,
    Scope,
    StoredToken,
    TokenInfo,
    mint,
)
from shoal.model.clock import steady_time
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    ShoalError,
)
from shoal.model.ids import NAME
from shoal.model.validate import check_number, check_text
from shoal.model.verbs import Verb
from shoal.model.visibility import check_sees_environment, no_environment, no_token, sees, visible_tokens

MAX_ENVIRONMENTS = 1_000
MAX_TOKENS = 1_000
"""Tokens that one environment may have. Of those that were revoked or have expired the newest are kept as far as there
is room."""

MAX_NAME = 128
_LONGEST_S = 10 * 366 * 86400.0
_MINUTE_S = 60.0


class Accounts:
    """The environments and tokens of a cluster. `clock`: unix seconds."""

    def __init__(self, writer: RecordWriter, registry: Registry, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._registry = registry
        self._clock = clock
        self._environments: dict[str, Environment] = {}
        self._tokens: dict[str, StoredToken] = {}
        # One change at a time: each depends on memory, which the one before changes once it is on record.
        self._changing = asyncio.Lock()
        self.pools_in: Callable[[str], int] = lambda environment: 0
        """How many pools an environment has."""
        self.secrets_of: Callable[[str], Sequence[str]] = lambda environment: ()
        """The ids of its secrets, which go with it."""
        self.forget_secrets: Callable[[str], None] = lambda environment: None
        self.volumes_in: Callable[[str], int] = lambda environment: 0
        """How many volumes."""
        self.volumes_hold: Callable[[str], tuple[int, int]] = lambda environment: (0, 0)
        """The sums of their limits: bytes, files."""

    async def restore(self, restored: Restored) -> None:
        """Takes over what the store kept, and creates `main` if it is missing."""
        self._environments = {environment.name: environment for environment in restored.environments}
        self._tokens = {token.info.id: token for token in restored.tokens}
        if MAIN_ENVIRONMENT not in self._environments:
            main = Environment(MAIN_ENVIRONMENT, Quota(), self._clock())
            await self._writer.write(Change(environments=(main,)))
            self._environments[MAIN_ENVIRONMENT] = main

    def exists(self, environment: str) -> bool:
        return environment in self._environments

    # -- environments -------------------------------------------------------------------------------

    def quota(self, name: str) -> Quota:
        """The quota of an environment; `EnvironmentNotFound`."""
        return self._known(name).quota

    async def create_environment(self, name: str, quota: Quota, caller: Caller) -> Environment:
        """Creates an environment; `AlreadyExists` also if one of that name was deleted and is still remembered."""
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"name: {name!r} is no name; use 1 to 64 letters, digits, dots, dashes and underscores", field="name"
            )
        check_bounds(quota)
        async with self._changing:
            if name in self._environments:
                raise AlreadyExists(f"name: there is an environment {name!r} already; choose another", field="name")
            if len(self._environments) >= MAX_ENVIRONMENTS:
                raise QuotaExceeded(f"there are {MAX_ENVIRONMENTS} environments, which is the most; delete some")
            if await self._writer.store.was_deleted(name):
                # Sandboxes, events and keys are found by the name: the next owner would see those of the last.
                raise AlreadyExists(
                    f"name: an environment {name!r} was deleted, and what happened in it is kept under that name for "
                    "`store.retention`; choose another, or wait until that is over",
                    field="name",
                )
            made = Environment(name, quota, self._clock())
            await self._writer.write(_environment_change(made, verbs.create_environment, caller))
            self._environments[name] = made
        return self._with_usage(made)

    def environments(self, caller: Caller) -> list[Environment]:
        found = [self._with_usage(e) for e in self._environments.values() if sees(caller, e.name)]
        return sorted(found, key=lambda environment: environment.name)

    def environment(self, name: str, caller: Caller) -> Environment:
        check_sees_environment(caller, name)
        return self._with_usage(self._known(name))

    async def set_quota(self, name: str, quota: Quota, caller: Caller) -> Environment:
        check_sees_environment(caller, name)
        check_bounds(quota)
        async with self._changing:
            changed = replace(self._known(name), quota=quota)
            await self._writer.write(_environment_change(changed, verbs.set_quota, caller))
            self._environments[name] = changed
        return self._with_usage(changed)

    async def delete_environment(self, name: str, caller: Caller) -> None:
        check_sees_environment(caller, name)
        if name == MAIN_ENVIRONMENT:
            raise InvalidRequest(f"name: {name!r} always is; delete another", field="name")
        async with self._changing:
            await self._delete(name, caller)

    async def _delete(self, name: str, caller: Caller) -> None:
        kept = self._known(name)
        living = self._registry.usage(name).sandboxes
        if living:
            raise FailedPrecondition(f"{living} sandboxes live in {name!r}; terminate them first", state="in_use")
        pools = self.pools_in(name)
        if pools:
            raise FailedPrecondition(f"{name!r} has {pools} pools; delete them first", state="in_use")
        volumes = self.volumes_in(name)
        if volumes:
            raise FailedPrecondition(f"{name!r} has {volumes} volumes; delete them first", state="in_use")
        now = self._clock()
        revoked = [
            _revoked(token, now)
            for token in self._tokens.values()
            if token.info.environment == name and token.info.revoked_at is None
        ]
        del self._environments[name]  # first, so that nothing is created in it from now on
        entry = audited(verbs.delete_environment, caller, target=name, environment=name)
        try:
            removed = Change(
                removed_environments=(name,), tokens=revoked, removed_secrets=self.secrets_of(name), audit=(entry,)
            )
            await self._revoke(revoked, removed)
        except ShoalError:
            self._environments[name] = kept
            raise
        self.forget_secrets(name)

    # -- tokens -------------------------------------------------------------------------------------

    async def create_token(
        self, name: str, environment: str, scope: Scope, expires_in: float | None, caller: Caller
    ) -> tuple[TokenInfo, str]:
        """Creates a token and returns it with its text, which is stored nowhere."""
        check_text("name", name, "a short text that tells what the token is for")
        if len(name) > MAX_NAME:
            raise InvalidRequest(f"name: {len(name)} characters are too many; use at most {MAX_NAME}", field="name")
        if not sees(caller, environment):
            raise PermissionDenied(
                f"environment: your token is for {caller.environment!r} alone, and so are those that you make",
                field="environment",
            )
        scope = _scope(scope)
        if not caller.scope.covers(scope):
            raise PermissionDenied(f"scope: your own is {caller.scope.value!r}; ask for no more", field="scope")
        if expires_in is not None:
            check_number("expires_in", expires_in, 0, _LONGEST_S, "seconds")
        async with self._changing:
            return await self._create_token(name, environment, scope, expires_in, caller)

    async def _create_token(
        self, name: str, environment: str, scope: Scope, expires_in: float | None, caller: Caller
    ) -> tuple[TokenInfo, str]:
        if environment != ANY_ENVIRONMENT:
            self._known(environment)
        now = self._clock()
        kept = [token.info for token in self._tokens.values() if token.info.environment == environment]
        void = sorted((info for info in kept if not info.valid(now)), key=_void_since)
        if len(kept) - len(void) >= MAX_TOKENS:
            raise QuotaExceeded(f"environment {environment!r} has {MAX_TOKENS} tokens, which is the most; revoke some")
        # Else a loop of creates and revokes would fill memory and store. The audit log still has them.
        forgotten = [info.id for info in void[: max(0, len(kept) + 1 - MAX_TOKENS)]]
        token_id, text, digest = mint()
        expires_at = None if expires_in is None else now + expires_in
        info = TokenInfo(token_id, name, environment, scope, now, expires_at, created_by=caller.token)
        entry = audited(verbs.create_token, caller, target=token_id, environment=environment)
        token = StoredToken(info, digest)
        await self._writer.write(Change(tokens=(token,), audit=(entry,), removed_tokens=forgotten))
        self._tokens[token_id] = token
        for each in forgotten:
            self._tokens.pop(each, None)
        return info, text

    def tokens(self, caller: Caller) -> list[TokenInfo]:
        found = visible_tokens(caller, [token.info for token in self._tokens.values()])
        return sorted(found, key=lambda info: (info.created_at, info.id), reverse=True)

    async def revoke_token(self, token_id: str, caller: Caller) -> TokenInfo:
        async with self._changing:
            token = self._tokens.get(token_id)
            if token is None or not sees(caller, token.info.environment):
                raise no_token(token_id)
            if token.info.revoked_at is None:
                token = _revoked(token, self._clock())
                entry = audited(verbs.revoke_token, caller, target=token_id, environment=token.info.environment)
                await self._revoke([token], Change(tokens=(token,), audit=(entry,)))
        return token.info

    def stored_token(self, token_id: str) -> StoredToken | None:
        return self._tokens.get(token_id)

    def token_ids(self) -> list[str]:
        return list(self._tokens)

    def used(self, when: Mapping[str, float]) -> list[StoredToken]:
        """Notes when tokens were last used; returns those whose change is worth writing."""
        changed = []
        for token_id, at in when.items():
            token = self._tokens.get(token_id)
            if token is None or token.info.revoked_at is not None:
                continue
            if at >= (token.info.last_used_at or 0.0) + _MINUTE_S:
                noted = replace(token, info=replace(token.info, last_used_at=at - at % _MINUTE_S))
                self._tokens[token_id] = noted
                changed.append(noted)
        return changed

    def expire(self, before: float) -> None:
        """Forgets tokens that were revoked or expired before that time, as the store does."""
        for token in list(self._tokens.values()):
            info = token.info
            if any(at is not None and at < before for at in (info.revoked_at, info.expires_at)):
                del self._tokens[info.id]

    # -- inside -------------------------------------------------------------------------------------

    def _known(self, name: str) -> Environment:
        found = self._environments.get(name)
        if found is None:
            raise no_environment(name)
        return found

    def _with_usage(self, environment: Environment) -> Environment:
        size, files = self.volumes_hold(environment.name)
        used = self._registry.usage(environment.name).as_quota(steady_time())
        return replace(environment, usage=replace(used, volume_bytes=size, volume_files=files))

    async def _revoke(self, revoked: Sequence[StoredToken], change: Change) -> None:
        """Revokes in memory first: else a use that is noted meanwhile would overwrite the revocation."""
        before = {token.info.id: self._tokens[token.info.id] for token in revoked}
        self._tokens |= {token.info.id: token for token in revoked}
        try:
            await self._writer.write(change)
        except ShoalError:
            self._tokens |= before
            raise


def check_bounds(quota: Quota) -> None:
    """Raises `InvalidRequest` for an invalid quota."""
    for name in (each.name for each in fields(Quota)):
        value: Any = getattr(quota, name)
        if value is None:
            continue
        number = isinstance(value, int | float if name == "cpu" else int) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= 1 << 60:
            raise InvalidRequest(f"{name}: {value!r} is no bound; give a number of 0 or more, or none", field=name)


def _environment_change(environment: Environment, verb: Verb[..., Any], caller: Caller) -> Change:
    entry = audited(verb, caller, target=environment.name, environment=environment.name)
    return Change(environments=(environment,), audit=(entry,))


def _void_since(info: TokenInfo) -> float:
    return min(at for at in (info.revoked_at, info.expires_at) if at is not None)


def _revoked(token: StoredToken, now: float) -> StoredToken:
    return replace(token, info=replace(token.info, revoked_at=now))


def _scope(value: Any) -> Scope:
    try:
        return Scope(value)
    except ValueError:
        raise InvalidRequest(
            f"scope: {value!r} is none of {', '.join(scope.value for scope in Scope)}", field="scope"
        ) from None
