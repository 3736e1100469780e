"""Secrets."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Mapping

from shoal.model.access import Scope
from shoal.model.secrets import SecretInfo
from shoal.model.verbs.verb import Retry, verb


@verb(Scope.ADMIN, "POST /v1/secrets", audit="secret.create", retry=Retry.UNANSWERED)
def create_secret(name: str, values: Mapping[str, str], environment: str, replace: bool) -> SecretInfo:
    """Stores values by a name in an environment, encrypted; `replace`: in place of those of that name. No verb tells
    them again. `InvalidRequest`, `AlreadyExists`, `QuotaExceeded`, `FailedPrecondition` (state `no_key`)."""


@verb(Scope.READ, "GET /v1/secrets", many="secrets")
def secrets(environment: str | None) -> list[SecretInfo]:
    """The secrets of an environment, or (None) all that the caller may see, by environment and name."""


@verb(Scope.READ, "GET /v1/secrets/{name}")
def secret(name: str, environment: str) -> SecretInfo:
    """One: its keys, not its values; `SecretNotFound`."""


@verb(Scope.ADMIN, "DELETE /v1/secrets/{name}", audit="secret.delete", retry=Retry.NEVER)
def delete_secret(name: str, environment: str) -> None:
    """Deletes one. Sandboxes that run keep its values; what is started after it needs another. `SecretNotFound`."""


@verb(Scope.ADMIN, "POST /v1/secrets/rotate", everywhere=True, many="secrets", audit="secret.rotate")
def rotate_secrets() -> list[SecretInfo]:
    """Encrypts all secrets anew, with a new key; those of living sandboxes, too. The stored ones.
    `FailedPrecondition` (state `no_key`)."""
