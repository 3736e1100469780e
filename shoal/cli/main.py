"""The `shoal` command. Nothing heavy is imported until a command needs it: `shoal --help` is immediate."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from shoal.cli import cluster, copy, exits, run, sandboxes
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

app.command()(cluster.up)
app.command()(cluster.down)
app.command()(cluster.status)
app.command()(cluster.doctor)
app.command(context_settings=ENDS_OPTIONS)(run.run)
app.command("exec", context_settings=ENDS_OPTIONS)(run.exec_)
app.command()(run.shell)
app.command()(sandboxes.ls)
app.command()(sandboxes.logs)
app.command()(copy.cp)
app.command()(sandboxes.rm)


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
) -> None:
    """Sandboxes for untrusted code, on machines of your own.

    \b
    Start here:
      shoal doctor                         what this machine lacks
      shoal up                             start a cluster on it
      shoal run shoal/base python3 -c 'print(6 * 7)'
      shoal run -it shoal/base bash
      shoal down                           take all of it away

    `shoal COMMAND --help` has examples of each. Settings: SHOAL_… variables, or settings.toml in the state directory.
    SHOAL_DEBUG=1 shows where an error came from.
    """


def _stop(number: int, _: object) -> None:
    """As an interrupt: whatever was begun is undone on the way out."""
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
    except Exception as error:  # whatever it is, the user gets one line
        if os.environ.get("SHOAL_DEBUG"):
            raise
        print_error(f"a defect of Shoal's: {type(error).__name__}: {error}; SHOAL_DEBUG=1 shows more")
        sys.exit(exits.EXIT_CODES[Internal])


if __name__ == "__main__":
    main()
