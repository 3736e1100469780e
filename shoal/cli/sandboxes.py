"""`shoal ls`, `logs`, `stop`, `start` and `rm`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import attach, console
from shoal.cli.exits import exit_code_of
from shoal.cli.options import EnvironmentName, Json, SandboxName, SandboxNames, pairs
from shoal.cli.session import find, with_cluster
from shoal.client.arguments import states_of
from shoal.client.output import ProcessBytes
from shoal.client.retrying_agent import RetryingAgent
from shoal.model.errors import FailedPrecondition, ShoalError
from shoal.model.ids import MAIN_PROCESS
from shoal.model.info import Listing, SandboxInfo
from shoal.model.sorting import NEWEST, check_sort

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.sandbox import Sandbox

_COLUMNS = ("ID", "NAME", "IMAGE", "STATE", "AGE", "COMMAND")


def ls(
    all: Annotated[bool, typer.Option("--all", "-a", help="Also ended ones.")] = False,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Only those with this tag.")
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only those in this state, such as running.")
    ] = None,
    region: Annotated[str | None, typer.Option(metavar="REGION", help="Only those in this region.")] = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="ORDER", help="created, name, state, image, region, cpu or memory; with - before it, backwards."
        ),
    ] = NEWEST,
    environment: EnvironmentName = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only ids.")] = False,
    json: Json = False,
) -> None:
    """List sandboxes, newest first unless --sort says otherwise.

    \b
    Examples:
      shoal ls
      shoal ls --all --tag team=search
      shoal ls --state pending --state starting --region eu
      shoal ls --sort name
      shoal rm $(shoal ls -q)
      shoal ls --json | jq -r '.[].id'
    """
    check_sort(sort)
    listing = Listing(
        environment or "",
        pairs("tag", tag),
        states_of(state or ()),
        include_ended=all,
        region=region,
        sort=sort,
    )
    infos = with_cluster(lambda client: _list(client, listing))
    if json:
        console.print_json([info.to_dict() for info in infos])
    elif quiet:
        for info in infos:
            typer.echo(info.id)
    else:
        console.print_table(_COLUMNS, [_row(info) for info in infos])


def logs(
    sandbox: SandboxName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the output until the command ends.")] = False,
) -> None:
    """Print the output of a sandbox's own command.

    Prints all output so far, from the beginning, also after the sandbox's end. The command does not wait for readers:
    of unread output, the newest 1 MiB of stdout and of stderr is kept, and gaps are reported.

    \b
    Examples:
      shoal logs web
      shoal logs -f web
    """
    with_cluster(lambda client: _logs(client, sandbox, follow))


def stop(sandboxes: SandboxNames) -> None:
    """Stop persistent sandboxes; their disks stay.

    So do their names, tags and tunnels.

    \b
    Examples:
      shoal run -d --name dev --persistent shoal/base
      shoal stop dev
      shoal start dev
    """
    _exit_for(with_cluster(lambda client: _each(client, sandboxes, _stop)))


def start(sandboxes: SandboxNames) -> None:
    """Start persistent sandboxes that are stopped.

    \b
    Examples:
      shoal start dev
      shoal start $(shoal ls -q --state stopped)
    """
    _exit_for(with_cluster(lambda client: _each(client, sandboxes, _start)))


def suspend(sandboxes: SandboxNames) -> None:
    """Stop persistent sandboxes in gVisor and keep their memory.

    They use no CPU and memory. Whatever is asked of one, or `shoal resume`, has it go on where it was.

    \b
    Examples:
      shoal run -d --name dev --persistent --runtime runsc shoal/base
      shoal suspend dev
      shoal exec dev python3 -V
    """
    _exit_for(with_cluster(lambda client: _each(client, sandboxes, _suspend)))


def pause(sandboxes: SandboxNames) -> None:
    """Freeze sandboxes where they are.

    They keep their memory and use no CPU. `shoal resume` lets them go on.

    \b
    Examples:
      shoal pause web
      shoal resume web
    """
    _exit_for(with_cluster(lambda client: _each(client, sandboxes, _pause)))


def resume(sandboxes: SandboxNames) -> None:
    """Let paused or suspended sandboxes go on.

    \b
    Examples:
      shoal resume web
      shoal resume $(shoal ls -q --state paused)
    """
    _exit_for(with_cluster(lambda client: _each(client, sandboxes, _resume)))


def rm(sandboxes: SandboxNames) -> None:
    """End sandboxes and remove their files.

    \b
    Examples:
      shoal rm web
      shoal rm sb-4fd2mzq7c3wnk5xe sb-c6r7yq2m4kdlt3wz
    """
    _exit_for(with_cluster(lambda client: _each(client, sandboxes, _end)))


def _exit_for(errors: Sequence[ShoalError]) -> None:
    for error in errors:
        console.print_error(error.message)
    if errors:
        raise typer.Exit(exit_code_of(errors[0]))


async def _list(client: Client, listing: Listing) -> list[SandboxInfo]:
    environment = listing.environment or await client.transport.default_environment()
    return await client.transport.list(replace(listing, environment=environment))


async def _logs(client: Client, name: str, follow: bool) -> None:
    sandbox = await find(client, name)
    info = await sandbox.info.aio()
    if not info.spec.command:
        raise FailedPrecondition("this sandbox was created without a command of its own", state=info.state.value)
    agent = RetryingAgent(client.transport, sandbox.id)
    await asyncio.gather(
        *(_copy_log(ProcessBytes(agent, MAIN_PROCESS, fd, peek=True, follow=follow), fd) for fd in (1, 2))
    )


async def _copy_log(source: ProcessBytes, fd: int) -> None:
    told = 0
    try:
        while True:
            chunk = await source.next()
            if source.dropped > told:
                name = "stdout" if fd == 1 else "stderr"
                console.print_error(
                    f"{source.dropped - told} bytes of {name} are missing here: they are no longer kept"
                )
                told = source.dropped
            if not chunk:
                return
            await attach.write(fd, chunk)
    finally:
        await source.close()


async def _each(
    client: Client, names: Sequence[str], do: Callable[[Sandbox], Coroutine[Any, Any, None]]
) -> list[ShoalError]:
    """Does it with all of them at once; what went wrong."""

    async def one(name: str) -> None:
        await do(await find(client, name))

    results = await asyncio.gather(*map(one, names), return_exceptions=True)
    errors = []
    for result in results:
        if isinstance(result, ShoalError):
            errors.append(result)
        elif isinstance(result, BaseException):
            raise result
    return errors


async def _end(sandbox: Sandbox) -> None:
    await sandbox.terminate.aio()


async def _stop(sandbox: Sandbox) -> None:
    await sandbox.stop.aio()


async def _start(sandbox: Sandbox) -> None:
    await sandbox.start.aio()


async def _suspend(sandbox: Sandbox) -> None:
    await sandbox.suspend.aio()


async def _pause(sandbox: Sandbox) -> None:
    await sandbox.pause.aio()


async def _resume(sandbox: Sandbox) -> None:
    await sandbox.resume.aio()


def _row(info: SandboxInfo) -> tuple[str, ...]:
    why = info.waiting if info.reason is None else info.reason.value
    state = info.state.value if why is None else f"{info.state.value} ({why})"
    command = " ".join(info.spec.command)
    return (
        info.id,
        info.spec.name or "",
        info.spec.image,
        state,
        console.age(time.time() - info.created_at),
        command if len(command) <= 40 else command[:39] + "…",
    )
