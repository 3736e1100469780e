"""`shoal.reward`: runs a command in a sandbox and reads a score from it. What the command writes may be hostile."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from shoal.client.arguments import argv_of
from shoal.client.dual_method import dual_function
from shoal.client.html import block, card, text
from shoal.client.process import Result
from shoal.client.sandbox import Sandbox
from shoal.model.errors import CommandFailed, DeadlineExceeded, InvalidRequest, NoScore, SandboxEnded, ShoalError
from shoal.model.validate import check_number

MAX_LINE = 64 << 10
"""Characters of the line that holds the score."""

_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Reward:
    """A score, and where it comes from.

    `details`: the JSON object that it was in, if it was in one. `why`: None if it was read, else why it is the floor:
    `timeout`, `exit code 1`, `no score`, or the reason of the sandbox's end, such as `out_of_memory`. `result`: that of
    the command, None if the sandbox ended meanwhile.
    """

    score: float
    details: Mapping[str, Any] = field(default_factory=dict)
    why: str | None = None
    result: Result[str] | None = None

    def __float__(self) -> float:
        return self.score

    def _repr_html_(self) -> str:
        output = "" if self.result is None else block(self.result.stdout) + block(self.result.stderr)
        return card(f"<b>score {text(self.score)}</b>", {"why": self.why, "details": self.details or None}, output)


@dual_function
async def reward(
    sandbox: Sandbox,
    *command: str | Sequence[str],
    read: Literal["last_line", "exit_code"] = "last_line",
    key: str = "score",
    floor: float | None = None,
    bounds: tuple[float, float] | None = None,
    timeout: float | None = None,
    env: Mapping[str, str | None] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    user: str | None = None,
    input: str | bytes | None = None,
) -> Reward:
    """Runs a command in a sandbox and returns the score that it earned.

    `read`: `last_line`, the last line of its stdout that is not empty: a number, or a JSON object with a number under
    `key`; the command must exit with 0. Or `exit_code`: 1.0 if it is 0, else 0.0. `command`, `timeout`, `env`,
    `workdir`, `user`, `input`: as in `Sandbox.run`.

    `bounds`: the lowest and the highest score; another one does not count. Infinite scores, and those that are no
    numbers, never do.

    Without a `floor`, a command that earns no score raises: `DeadlineExceeded` (timeout), `CommandFailed` (exit code),
    `NoScore` (no line that counts), `SandboxEnded` (it used up the sandbox's memory, say). With one, its score is the
    floor. What is not the command's doing always raises: a lost node, `Unavailable`, `CommandNotFound`.

    Whoever writes last to stdout decides. Code that is to be judged must not write there: have the command run it as a
    process of its own and print the score itself.
    """
    _check(read, floor, bounds)
    argv = argv_of(command)
    try:
        result = await sandbox.run.aio(argv, timeout=timeout, env=env, workdir=workdir, user=user, input=input)
    except SandboxEnded as ended:
        if floor is None or ended.retryable:
            raise
        return Reward(floor, why=ended.reason)
    if read == "exit_code":
        if result.timed_out:
            return _floor(floor, result, "timeout", timeout)
        return Reward(float(result.returncode == 0), result=result)
    return _read(result, key, floor, bounds, timeout)


def _read(
    result: Result[str], key: str, floor: float | None, bounds: tuple[float, float] | None, timeout: float | None
) -> Reward:
    if result.timed_out:
        return _floor(floor, result, "timeout", timeout)
    if result.returncode != 0:
        return _floor(floor, result, f"exit code {result.returncode}", timeout)
    found = None if result.truncated else score_in(result.stdout, key)
    if found is None or (bounds is not None and not bounds[0] <= found[0] <= bounds[1]):
        return _floor(floor, result, "no score", timeout)
    return Reward(*found, result=result)


def score_in(text: str, key: str) -> tuple[float, Mapping[str, Any]] | None:
    """The score in the last line of a hostile text, and the JSON object around it; None if there is none."""
    line = text.rstrip()[-MAX_LINE - 1 :].rpartition("\n")[2]
    if len(line) > MAX_LINE:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or brackets in brackets
        return None
    details = value if isinstance(value, dict) else {}
    number = details.get(key) if isinstance(value, dict) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    try:
        score = float(number)
    except OverflowError:
        return None
    return (score, details) if math.isfinite(score) else None


def _floor(floor: float | None, result: Result[str], why: str, timeout: float | None) -> Reward:
    if floor is None:
        _fail(result, why, timeout)
    return Reward(floor, why=why, result=result)


def _fail(result: Result[str], why: str, timeout: float | None) -> NoReturn:
    fields = {"stdout": result.stdout[-_TAIL:], "stderr": result.stderr[-_TAIL:]}
    error: ShoalError
    if why == "timeout":
        error = DeadlineExceeded(f"the command was killed after {timeout:g} s", **fields)
    elif why == "no score":
        error = NoScore(
            "the last line of the command's output is no score; print a number, or a JSON object with one",
            returncode=result.returncode,
            **fields,
        )
    else:
        error = CommandFailed(f"the command ended with {why}", returncode=result.returncode, **fields)
    raise error


def _check(read: Any, floor: Any, bounds: Any) -> None:
    if read not in ("last_line", "exit_code"):
        raise InvalidRequest(f"read: {read!r:.80} is neither 'last_line' nor 'exit_code'", field="read")
    if floor is not None:
        check_number("floor", floor, -math.inf, math.inf, "points")
    if bounds is not None:
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            raise InvalidRequest(f"bounds: {bounds!r:.80} is not (lowest, highest)", field="bounds")
        for bound in bounds:
            check_number("bounds", bound, -math.inf, math.inf, "points")
        if bounds[0] > bounds[1]:
            raise InvalidRequest(f"bounds: {bounds[0]:g} is above {bounds[1]:g}; swap them", field="bounds")
