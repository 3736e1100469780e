"""`shoal profile`: where the time of a create, and of an exec, goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import console
from shoal.cli.options import Json, SandboxName
from shoal.cli.session import find, with_cluster
from shoal.model import verbs
from shoal.model.errors import ShoalError
from shoal.model.profile import CreateProfile, Step
from shoal.model.states import State

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.sandbox import Sandbox

_RUNS = 20


def profile(
    sandbox: SandboxName,
    no_exec: Annotated[bool, typer.Option("--no-exec", help="Run nothing in it: only its create.")] = False,
    json: Json = False,
) -> None:
    """Show where the time of a create and of an exec goes.

    The create's steps are those that the cluster remembers of this sandbox. For the exec's, `true` is run in it from
    here some twenty times.

    \b
    Examples:
      shoal profile web
      shoal profile $(shoal run -d shoal/base sleep 60) --no-exec
      shoal profile web --json | jq '.create.steps[] | {name, seconds}'
    """
    create, execs = with_cluster(lambda client: _profile(client, sandbox, not no_exec))
    if json:
        console.print_json({"create": create.to_dict(), "exec": None if execs is None else [_plain(s) for s in execs]})
        return
    total = "it has not run yet" if create.seconds is None else f"{_ms(create.seconds)} until it ran"
    kept = ", in a container that was kept ready" if create.warm else ""
    typer.echo(f"Create of {create.sandbox_id}: {total}{kept}")
    _print(create)
    if execs is not None:
        typer.echo("\nAn exec of `true` from here, the middle of some twenty")
        _rows(execs)


async def _profile(client: Client, name: str, runs: bool) -> tuple[CreateProfile, list[Step] | None]:
    sandbox = await find(client, name)
    create = await client.transport.ask(verbs.profile, sandbox.id)
    info = await sandbox.info.aio()
    if not runs or info.state is not State.RUNNING:
        return create, None
    return create, await _execs(sandbox)


async def _execs(sandbox: Sandbox) -> list[Step]:
    """The steps of an exec, measured from here."""

    async def timed(of: Any) -> tuple[float, Any]:
        began = time.perf_counter()
        result = await of
        return time.perf_counter() - began, result

    first, _ = await timed(sandbox.run.aio(["true"]))
    runs = [await timed(sandbox.run.aio(["true"])) for _ in range(_RUNS)]
    whole = _middle([seconds for seconds, _ in runs])
    own = _middle([result.duration for _, result in runs])
    starts, bytes_, ends = [], [], []
    for _ in range(_RUNS // 4):
        began = time.perf_counter()
        process = await sandbox.exec.aio("echo", "x")
        starts.append(time.perf_counter() - began)
        async for _line in process.stdout:
            bytes_.append(time.perf_counter() - began)
            break
        await process.wait.aio()
        ends.append(time.perf_counter() - began)
    return [
        Step("dial", max(0.0, first - whole), "the first call: a connection to its agent, once for each program"),
        Step("round trip", max(0.0, whole - own), "`run`, beside the command's own time: to the agent and back"),
        Step("command", own, "the command's own time in the sandbox: fork, exec, exit"),
        Step("exec: start", _middle(starts), "`exec` until the process has begun"),
        Step("exec: first byte", _middle(bytes_), "the same until the first line of output was here"),
        Step("exec: end", _middle(ends), "the same until its exit code was here"),
    ]


def _middle(values: list[float]) -> float:
    if not values:
        raise ShoalError("the command printed nothing")
    return sorted(values)[len(values) // 2]


def _print(create: CreateProfile) -> None:
    if create.steps:
        _rows(create.steps)
    else:
        console.err().print("Its steps are forgotten: the controller was restarted, or it ended long ago.")


def _rows(steps: Any) -> None:
    longest = max((step.seconds for step in steps), default=0.0) or 1.0
    rows = [
        (step.name, _ms(step.seconds), "█" * round(20 * step.seconds / longest) or "▏", step.about) for step in steps
    ]
    console.print_table(("STEP", "TIME", "", "WHAT"), rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _plain(step: Step) -> dict[str, Any]:
    return {"name": step.name, "seconds": step.seconds, "about": step.about}
