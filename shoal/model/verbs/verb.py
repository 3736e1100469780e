"""What a verb is: its declaration with arguments, result and errors, who may ask, and how it travels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cached_property
from typing import Any, Generic, ParamSpec, TypeVar

from shoal.model.access import Scope
from shoal.model.grants import Grant
from shoal.model.info import SandboxInfo

LONGEST_WAIT_S = 30.0
"""The longest that one call of a verb waits for something to happen."""

SNAPSHOT_S = 600.0
"""The longest that taking an image of a sandbox's files may take."""

BASE_S = PUSH_S = 900.0
"""The longest that pulling the base of a build, or sending an image to a registry, may take."""

VOLUME_S = 120.0
"""The longest that a call about one volume may take."""

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

Made = tuple[SandboxInfo, Grant | None]
"""A sandbox that was created, and access to its agent where it runs."""


class Retry(Enum):
    """When a transport sends a verb again."""

    ALWAYS = "always"
    """When no answer came, and when the answer is `Unavailable`."""
    UNANSWERED = "unanswered"
    """Only when no answer came: the controller refuses it only after having waited itself."""
    NEVER = "never"
    """Not once it may have been received: sent twice, it does something else."""


class Verb(Generic[P, R_co]):
    """One verb.

    `scope`: what a caller's token must cover, None where only the cluster's own parts ask. `everywhere`: the token must
    be one of all environments, too. `method`, `path`: its address in the API. `many`: the name under which a JSON
    answer holds its list. `audit`: its action in the audit log. `takes`: seconds that it may take beside those of an
    ordinary call, or the argument that says so.
    """

    def __init__(
        self,
        declaration: Callable[P, R_co],
        scope: Scope | None,
        http: str | None,
        many: str | None,
        everywhere: bool,
        audit: str | None,
        retry: Retry,
        takes: float | str,
    ) -> None:
        self.declaration = declaration
        self.name = declaration.__name__
        self.scope = scope
        self.method, _, self.path = (http or "").partition(" ")
        self.many = many
        self.everywhere = everywhere
        self.audit = audit
        self.retry = retry
        self.takes = takes

    @cached_property
    def signature(self) -> inspect.Signature:
        """Its arguments by name."""
        return inspect.signature(self.declaration)

    @cached_property
    def _count(self) -> int:
        return len(self.signature.parameters)

    def named(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, defaults included."""
        bound = self.signature.bind(*args, **options)
        bound.apply_defaults()
        return bound.arguments

    def in_order(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call in their order, defaults included."""
        if not options and len(args) == self._count:
            return args
        return tuple(self.named(args, options).values())

    def __repr__(self) -> str:
        return f"<Verb {self.name}>"


def verb(
    scope: Scope | None,
    http: str | None = None,
    *,
    many: str | None = None,
    everywhere: bool = False,
    audit: str | None = None,
    retry: Retry = Retry.ALWAYS,
    takes: float | str = 0.0,
) -> Callable[[Callable[P, R_co]], Verb[P, R_co]]:
    """Declares a verb; `http` as in `"GET /v1/nodes"`, the rest as in `Verb`."""
    return lambda declaration: Verb(declaration, scope, http, many, everywhere, audit, retry, takes)
