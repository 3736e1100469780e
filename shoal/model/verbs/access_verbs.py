"""Environments, tokens, and the sign-in of a browser."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import Environment, Quota, Scope, SignInCode, TokenInfo
from shoal.model.verbs.verb import Retry, verb

# Environments


@verb(Scope.ADMIN, "POST /v1/environments", everywhere=True, audit="environment.create", retry=Retry.NEVER)
def create_environment(name: str, quota: Quota) -> Environment:
    """A new one; `InvalidRequest`, `AlreadyExists`, also while the history of a deleted one of that name is kept."""


@verb(Scope.READ, "GET /v1/environments", many="environments")
def environments() -> list[Environment]:
    """Those that the caller may see, by name, with their use."""


@verb(Scope.READ, "GET /v1/environments/{name}")
def environment(name: str) -> Environment:
    """One, with its use; `EnvironmentNotFound`."""


@verb(Scope.ADMIN, "PUT /v1/environments/{name}/quota", everywhere=True, audit="environment.quota")
def set_quota(name: str, quota: Quota) -> Environment:
    """Replaces its quota. What lives beyond it lives on; new creates wait for room under it."""


@verb(Scope.ADMIN, "DELETE /v1/environments/{name}", everywhere=True, audit="environment.delete", retry=Retry.NEVER)
def delete_environment(name: str) -> None:
    """Deletes it and revokes its tokens; `FailedPrecondition` while sandboxes live in it, `InvalidRequest` for
    `main`. Its name is free again once its history has expired."""


# Tokens


@verb(Scope.ADMIN, "POST /v1/tokens", audit="token.create", retry=Retry.NEVER)
def create_token(name: str, environment: str, scope: Scope, expires_in: float | None) -> tuple[TokenInfo, str]:
    """A new token and its text, which is not stored. `expires_in` in seconds. `PermissionDenied` for more than the
    caller may."""


@verb(Scope.ADMIN, "GET /v1/tokens", many="tokens")
def tokens() -> list[TokenInfo]:
    """Those that the caller may see, newest first, revoked and expired ones included."""


@verb(Scope.ADMIN, "DELETE /v1/tokens/{token_id}", audit="token.revoke")
def revoke_token(token_id: str) -> TokenInfo:
    """From now on the token is refused, by every replica within `api.token_cache` seconds. May be called again;
    `TokenNotFound`."""


@verb(Scope.READ, "POST /v1/session/codes", audit="session.code")
def sign_in_code() -> SignInCode:
    """What signs a browser in with the caller's token, once, within ten minutes; `FailedPrecondition` for callers
    without a token."""
