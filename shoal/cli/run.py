"""`shoal run`, `exec` and `shell`: commands in sandboxes, connected to this terminal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import attach, console
from shoal.cli.exits import exit_code_of_process
from shoal.cli.image_build import image_of
from shoal.cli.options import (
    Env,
    Interactive,
    SandboxName,
    Secrets,
    Tty,
    User,
    Workdir,
    amount,
    command_words,
    mebibytes,
    mounts,
    pairs,
    seconds,
    secrets,
)
from shoal.cli.session import find, with_cluster
from shoal.cli.spec_options import check_switches, parsed, with_spec_options
from shoal.model.errors import DeadlineExceeded, ImageNotFound, InvalidRequest

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.sandbox import Sandbox
    from shoal.model.images import ImageRecord

_SHELL = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi"

Command = Annotated[
    list[str] | None, typer.Argument(metavar="COMMAND", help="The program and its arguments.", show_default=False)
]


@with_spec_options()
def run(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A reference, id or name; or FILE.py[:NAME].", show_default=False)
    ],
    command: Command = None,
    interactive: Interactive = False,
    tty: Tty = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the sandbox's id and leave it running.")
    ] = False,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="A tag, to find it by.")] = None,
    env: Env = None,
    secret: Secrets = None,
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", "-v", metavar="NAME:PATH[:ro]", help="Mount a volume; NAME may be NAME/DIRECTORY."),
    ] = None,
    workdir: Workdir = None,
    user: User = None,
    cpu: Annotated[str | None, typer.Option(metavar="CORES", help="Guaranteed cores, or REQUEST:LIMIT.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="MIB", help="Guaranteed memory (512, 2g), or REQUEST:LIMIT.")
    ] = None,
    disk: Annotated[str | None, typer.Option(metavar="MIB", help="Most it may write (512, 2g).")] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Its lifetime (90s, 15m, 12h); default: the cluster's, 5m unless set."),
    ] = None,
    idle_timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="End it after this time without a process; default: never.")
    ] = None,
    owner_lease: Annotated[
        str | None, typer.Option(metavar="TIME", help="End it this time after this command was killed; default: never.")
    ] = None,
    **spec_options: str | bool | None,
) -> None:
    """Run a command in a new sandbox, which ends with the command.

    Its output appears as it is written, piped input goes to it, and `shoal run` exits with its exit code. Ctrl-C ends
    the sandbox. The command takes the place of one that the image was built with, which runs where none is given.

    \b
    Examples:
      shoal run shoal/base python3 -c 'print(6 * 7)'
      shoal run -it shoal/base bash
      cat data.csv | shoal run shoal/base wc -l
      shoal run --cpu 0.5:2 --memory 256:1g --timeout 10m shoal/base make test
      shoal run -d --name dev --persistent --restart on-failure shoal/base
      shoal run --secret openai shoal/base python3 agent.py
      shoal run images.py:tests pytest             an Image in a Python file
      shoal run -v data:/data -v models/weights:/models:ro shoal/base ls /data
      shoal run -d --name web --timeout 12h shoal/base python3 -m http.server
    """
    check_switches(image, spec_options)
    size = mebibytes("disk", disk)
    if isinstance(size, tuple):
        raise InvalidRequest(f"--disk: {disk!r} is not one size", field="disk")
    options = {
        **parsed(spec_options),
        "image": image_of(image),
        "tags": pairs("tag", tag),
        "env": pairs("env", env),
        "secrets": secrets(secret),
        "volumes": mounts(volume),
        "workdir": workdir,
        "user": user,
        "cpu": amount("cpu", cpu),
        "memory": mebibytes("memory", memory),
        "disk": size,
        "timeout": seconds("timeout", timeout),
        "idle_timeout": seconds("idle-timeout", idle_timeout),
        "owner_lease": seconds("owner-lease", owner_lease),
    }
    words = command_words(command)
    if detach:
        if owner_lease is not None:
            raise InvalidRequest("--owner-lease: nobody renews it after --detach; leave out one", field="owner_lease")
        _start(options, words)
        return
    _check_terminal(tty, interactive)
    raise typer.Exit(with_cluster(lambda client: _run(client, options, words, interactive, tty)))


def exec_(
    sandbox: SandboxName,
    command: Command = None,
    interactive: Interactive = False,
    tty: Tty = False,
    env: Env = None,
    workdir: Workdir = None,
    user: User = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Kill the command and all it started after this time (90s, 15m)."),
    ] = None,
) -> None:
    """Run a command in a running sandbox.

    Output, piped input and exit code are as in `shoal run`. Ctrl-C kills the command; the sandbox goes on.

    \b
    Examples:
      shoal exec web ls -l /
      shoal exec -it web bash
      shoal exec -e DEBUG=1 -w /srv -u nobody web python3 -m app
      tar c src | shoal exec web tar x -C /srv
    """
    words = command_words(command)
    if not words:
        raise InvalidRequest("COMMAND: there is none; name a program to run", field="command")
    _check_terminal(tty, interactive)
    limit = seconds("timeout", timeout)
    settings = {"env": pairs("env", env), "workdir": workdir, "user": user, "timeout": limit}
    raise typer.Exit(with_cluster(lambda client: _exec(client, sandbox, words, settings, interactive, tty)))


def shell(sandbox: SandboxName, user: User = None, workdir: Workdir = None) -> None:
    """Open a shell in a sandbox: bash if it has one, else sh.

    \b
    Examples:
      shoal shell web
      shoal shell --user nobody sb-4fd2mzq7c3wnk5xe
    """
    if not attach.is_terminal(0):
        raise InvalidRequest("stdin: not a terminal; use `shoal exec SANDBOX COMMAND` instead", field="stdin")
    settings: dict[str, Any] = {"workdir": workdir, "user": user}
    argv = ("/bin/sh", "-c", _SHELL)
    raise typer.Exit(with_cluster(lambda client: _exec(client, sandbox, argv, settings, True, True)))


def _start(options: dict[str, Any], command: tuple[str, ...]) -> None:
    async def body(client: Client) -> str:
        from shoal.client.sandbox import Sandbox

        return (await Sandbox.create.aio(*command, **options, client=client)).id

    console.out().print(with_cluster(body))


async def _run(client: Client, options: dict[str, Any], command: tuple[str, ...], interactive: bool, tty: bool) -> int:
    from shoal.client.sandbox import Sandbox

    built = await _with_own_command(client, options)
    if built is not None:
        # By its digest it comes without that command, which else would run beside this one, and end the sandbox.
        options = {**options, "image": built.digest}
        command = command or (*built.config.get("entrypoint", ()), *built.config.get("command", ()))
    if not command:
        raise InvalidRequest(
            "COMMAND: missing; name a program, or pass --detach for a sandbox that waits", field="command"
        )
    async with await Sandbox.create.aio(**options, client=client) as sandbox:
        return await _attached(sandbox, command, {}, interactive, tty)


async def _with_own_command(client: Client, options: dict[str, Any]) -> ImageRecord | None:
    """The image, if it was built with a command for sandboxes that are given none."""
    from shoal.client.image.image import Image
    from shoal.model.images import ImageKind, may_be_name

    image, where = options["image"], options.get("environment")
    if isinstance(image, Image):
        image = (await image.build.aio(client=client, environment=where)).reference
    if not isinstance(image, str) or not may_be_name(image):
        return None
    try:
        found = await client.image.aio(image, environment=where)
    except ImageNotFound:
        return None
    own = found.kind is ImageKind.BUILD and (found.config.get("entrypoint") or found.config.get("command"))
    return found if own else None


async def _exec(
    client: Client, name: str, command: tuple[str, ...], settings: dict[str, Any], interactive: bool, tty: bool
) -> int:
    return await _attached(await find(client, name), command, settings, interactive, tty)


async def _attached(
    sandbox: Sandbox, command: tuple[str, ...], settings: dict[str, Any], interactive: bool, tty: bool
) -> int:
    if tty:
        term = settings.get("env", {}).get("TERM") or os.environ.get("TERM")
        settings = {**settings, "pty": attach.terminal_size(), "term": term}
    process = await sandbox.exec.aio(command, **settings, text=False)
    stdin = interactive or not attach.is_terminal(0)
    code = exit_code_of_process(await attach.attach(process, stdin=stdin, pty=tty))
    if process.timed_out:
        raise DeadlineExceeded(f"the command took longer than {settings['timeout']:g} s and was killed")
    return code


def _check_terminal(tty: bool, interactive: bool) -> None:
    if tty and interactive and not attach.is_terminal(0):
        raise InvalidRequest("--tty: this input is no terminal; leave out -t", field="tty")
