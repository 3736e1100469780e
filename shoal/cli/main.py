"""The `shoal` command. Nothing heavy is imported until a command needs it: `shoal --help` is immediate."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from shoal.cli import (
    admin,
    cluster,
    copy,
    dashboard,
    exits,
    history,
    image_build,
    image_load,
    images,
    login,
    machines,
    pools,
    profile,
    rollouts,
    run,
    sandboxes,
    scaling,
    secrets,
    session,
    top,
    tunnels,
    usage,
    volumes,
)
from shoal.cli.console import print_error
from shoal.cli.options import ENDS_OPTIONS
from shoal.cli.session import Ended
from shoal.model.errors import Internal, ShoalError

app = typer.Typer(
    name="shoal",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=exits.HELP,
)

image = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Images: what sandboxes run on.")
image.command("build")(image_build.build)
image.command("ls")(images.ls)
image.command("show")(images.show)
image.command("snapshot")(images.snapshot)
image.command("mount")(images.mount)
image.command("unmount")(images.unmount)
image.command("tag")(images.tag)
image.command("rm")(images.rm)
image.command("gc")(images.gc)
image.command("push")(image_build.push)
image.command("load")(image_load.load)

app.command()(cluster.up)
app.command()(cluster.down)
app.command()(cluster.status)
app.command()(cluster.doctor)
app.command()(dashboard.dashboard)
app.command()(machines.join)
app.command()(machines.leave)
app.add_typer(machines.node, name="node")
app.add_typer(scaling.cluster, name="cluster")
app.command(context_settings=ENDS_OPTIONS)(run.run)
app.command("exec", context_settings=ENDS_OPTIONS)(run.exec_)
app.command()(run.shell)
app.command()(sandboxes.ls)
app.command()(sandboxes.logs)
app.command()(copy.cp)
app.command()(sandboxes.pause)
app.command()(sandboxes.resume)
app.command()(sandboxes.suspend)
app.command()(sandboxes.stop)
app.command()(sandboxes.start)
app.command()(sandboxes.rm)
app.command()(tunnels.tunnel)
app.command()(tunnels.tunnels)
app.command()(tunnels.forward)
app.command()(login.login)
app.command()(login.logout)
app.add_typer(pools.pool, name="pool")
app.add_typer(rollouts.rollout, name="rollout")
app.add_typer(image, name="image")
app.add_typer(secrets.secret, name="secret")
app.add_typer(volumes.volume, name="volume")
app.add_typer(admin.tokens, name="tokens")
app.add_typer(admin.environments, name="environments")
app.command()(history.audit)
app.command()(history.events)
app.command()(usage.usage)
app.command()(top.top)
app.command()(profile.profile)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shoal {version('shoal')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="The API of the cluster; default SHOAL_URL. Not for up, down, join, leave and doctor.",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            help="The API's token. Other users see it in the process list: better set SHOAL_TOKEN.",
        ),
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option("--ca", metavar="FILE", help="Certificates to trust instead of the system's; default SHOAL_CA."),
    ] = None,
) -> None:
    """Sandboxes for untrusted code, on machines of your own.

    \b
    Start here:
      shoal doctor                         what this machine lacks
      shoal up                             start a cluster on it
      shoal run shoal/base python3 -c 'print(6 * 7)'
      shoal run -it shoal/base bash
      shoal down                           remove all of it

    \b
    More machines:
      shoal up --address-ip 10.0.0.5       on the first; then `shoal node token`
      shoal join 10.0.0.5:6379             on each other one

    \b
    A remote cluster:
      shoal login https://shoal.example.org        asks for a token and stores it
      shoal --url https://shoal.example.org ls     with the token in SHOAL_TOKEN, or stored by `login`

    `shoal COMMAND --help` shows examples. Settings: SHOAL_… variables, or settings.toml in the state directory.
    SHOAL_DEBUG=1 shows tracebacks.
    """
    if url is not None:
        from shoal.transport.http_server import normal_url

        url = normal_url(url)
    session.target.set(session.Target(url, token, ca))


def _stop(number: int, _: object) -> None:
    """Handles it like an interrupt, so that what was begun is undone."""
    raise Ended(128 + number)


def main() -> None:
    """The console script: runs the command and ends the process with its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        app()
    except Ended as ended:
        sys.exit(ended.code)
    except ShoalError as error:
        if os.environ.get("SHOAL_DEBUG"):
            raise
        print_error(error.message)
        sys.exit(exits.exit_code_of(error))
    except Exception as error:  # the user gets one line, whatever it is
        if os.environ.get("SHOAL_DEBUG"):
            raise
        print_error(f"a bug in Shoal: {type(error).__name__}: {error}; SHOAL_DEBUG=1 shows the traceback")
        sys.exit(exits.EXIT_CODES[Internal])


if __name__ == "__main__":
    main()
