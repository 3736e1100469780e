"""What a caller may see, and what it is told of the rest: that there is no such thing, in the very words for what never was."""

from __future__ import annotations

from shoal.model.access import ANY_ENVIRONMENT, Caller, Environment, TokenInfo
from shoal.model.errors import EnvironmentNotFound, SandboxNotFound, TokenNotFound


def sees(caller: Caller, environment: str) -> bool:
    """Whether `caller` may know of what is in that environment."""
    return caller.environment in (ANY_ENVIRONMENT, environment)


def check_sees_sandbox(caller: Caller, sandbox_id: str, environment: str) -> None:
    """`SandboxNotFound` where the sandbox lives in an environment that is not the caller's."""
    if not sees(caller, environment):
        raise no_sandbox(sandbox_id)


def check_sees_environment(caller: Caller, environment: str) -> None:
    """`EnvironmentNotFound` where it is not the caller's."""
    if not sees(caller, environment):
        raise no_environment(environment)


def visible_tokens(caller: Caller, tokens: list[TokenInfo]) -> list[TokenInfo]:
    """Those of the environment that the caller may see."""
    return [token for token in tokens if sees(caller, token.environment)]


def visible_environments(caller: Caller, environments: list[Environment]) -> list[Environment]:
    return [environment for environment in environments if sees(caller, environment.name)]


def no_sandbox(sandbox_id: str) -> SandboxNotFound:
    return SandboxNotFound(f"there is no sandbox {sandbox_id}; `shoal ls --all` lists those that were")


def no_sandbox_named(name: str, environment: str) -> SandboxNotFound:
    return SandboxNotFound(f"there is no sandbox named {name!r} in environment {environment!r}")


def no_environment(name: str) -> EnvironmentNotFound:
    return EnvironmentNotFound(
        f"there is no environment {name!r}; make it with `shoal environments create {name}`, or name another",
        field="environment",
    )


def no_token(token_id: str) -> TokenNotFound:
    return TokenNotFound(f"there is no token {token_id!r}; `shoal tokens ls` lists those that are")
