"""What a caller may see. For the rest it gets the same errors as for what never existed."""

from __future__ import annotations

from shoal.model.access import ANY_ENVIRONMENT, Caller, Scope, TokenInfo
from shoal.model.errors import EnvironmentNotFound, PermissionDenied, SandboxNotFound, TokenNotFound


def check_may(caller: Caller, scope: Scope, *, everywhere: bool = False) -> None:
    """`PermissionDenied` if the token lacks `scope` or, with `everywhere`, is for one environment only."""
    if not caller.scope.covers(scope):
        raise PermissionDenied(f"this needs a token of scope '{scope}'; yours has '{caller.scope}'")
    if everywhere and caller.environment != ANY_ENVIRONMENT:
        raise PermissionDenied(
            f"this needs a token of the whole cluster (environment '*'); yours is of {caller.environment!r} only"
        )


def sees(caller: Caller, environment: str) -> bool:
    """Whether `caller` may see what is in this environment."""
    return caller.environment in (ANY_ENVIRONMENT, environment)


def check_sees_sandbox(caller: Caller, sandbox_id: str, environment: str) -> None:
    """`SandboxNotFound` if the caller may not see the sandbox's environment."""
    if not sees(caller, environment):
        raise no_sandbox(sandbox_id)


def check_sees_environment(caller: Caller, environment: str) -> None:
    """`EnvironmentNotFound` if the caller may not see it."""
    if not sees(caller, environment):
        raise no_environment(environment)


def visible_tokens(caller: Caller, tokens: list[TokenInfo]) -> list[TokenInfo]:
    """The tokens of environments that the caller may see."""
    return [token for token in tokens if sees(caller, token.environment)]


def no_sandbox(sandbox_id: str) -> SandboxNotFound:
    return SandboxNotFound(f"there is no sandbox {sandbox_id}; `shoal ls --all` lists all, with ended ones")


def no_sandbox_named(name: str, environment: str) -> SandboxNotFound:
    return SandboxNotFound(f"there is no sandbox named {name!r} in environment {environment!r}")


def no_environment(name: str) -> EnvironmentNotFound:
    return EnvironmentNotFound(
        f"there is no environment {name!r}; create it with `shoal environments create {name}`, or name another",
        field="environment",
    )


def no_token(token_id: str) -> TokenNotFound:
    return TokenNotFound(f"there is no token {token_id!r}; `shoal tokens ls` lists them")
