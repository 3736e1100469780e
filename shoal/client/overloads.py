"""The types of the calls whose result depends on `text`: `str` by default, `bytes` with `text=False`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, cast, overload

if TYPE_CHECKING:
    from shoal.client.process import Process, Result

Command = str | Sequence[str]
"""A line for `/bin/sh -c` or an argument list, where it is the only one; else one argument of several."""


class StartOptions(TypedDict, total=False):
    """The options of every process start."""

    env: Mapping[str, str | None] | None
    workdir: str | os.PathLike[str] | None
    user: str | None
    timeout: float | None
    merge_stderr: bool


class ExecOptions(StartOptions, total=False):
    pty: bool | tuple[int, int]
    echo: bool
    term: str | None


class RunOptions(StartOptions, total=False):
    input: str | bytes | None
    check: bool
    max_output: int


class ExecCall(Protocol):
    """`Sandbox.exec`."""

    @overload
    def __call__(
        self, *command: Command, text: Literal[True] = True, **options: Unpack[ExecOptions]
    ) -> Process[str]: ...
    @overload
    def __call__(self, *command: Command, text: Literal[False], **options: Unpack[ExecOptions]) -> Process[bytes]: ...
    @overload
    def __call__(self, *command: Command, text: bool, **options: Unpack[ExecOptions]) -> Process[Any]: ...

    @overload
    async def aio(
        self, *command: Command, text: Literal[True] = True, **options: Unpack[ExecOptions]
    ) -> Process[str]: ...
    @overload
    async def aio(self, *command: Command, text: Literal[False], **options: Unpack[ExecOptions]) -> Process[bytes]: ...
    @overload
    async def aio(self, *command: Command, text: bool, **options: Unpack[ExecOptions]) -> Process[Any]: ...


class RunCall(Protocol):
    """`Sandbox.run`."""

    @overload
    def __call__(self, *command: Command, text: Literal[True] = True, **options: Unpack[RunOptions]) -> Result[str]: ...
    @overload
    def __call__(self, *command: Command, text: Literal[False], **options: Unpack[RunOptions]) -> Result[bytes]: ...
    @overload
    def __call__(self, *command: Command, text: bool, **options: Unpack[RunOptions]) -> Result[Any]: ...

    @overload
    async def aio(
        self, *command: Command, text: Literal[True] = True, **options: Unpack[RunOptions]
    ) -> Result[str]: ...
    @overload
    async def aio(self, *command: Command, text: Literal[False], **options: Unpack[RunOptions]) -> Result[bytes]: ...
    @overload
    async def aio(self, *command: Command, text: bool, **options: Unpack[RunOptions]) -> Result[Any]: ...


def exec_call(call: object) -> ExecCall:
    """The same call, with overloads that a plain signature cannot express."""
    return cast(ExecCall, call)


def run_call(call: object) -> RunCall:
    """Like `exec_call`."""
    return cast(RunCall, call)
