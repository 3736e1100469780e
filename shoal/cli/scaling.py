"""`shoal cluster up`, `status` and `down`: a cluster that scales over regions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli import console, session, settings
from shoal.cli.options import Json

cluster = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="A cluster that scales over regions, as a file describes it."
)

_COLUMNS = ("TYPE", "RUNNING", "LAUNCHING", "WANTED", "DRAINING", "MIN", "MAX", "PRICE")


@cluster.command("up")
def up(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What the cluster consists of: shoal/configs has examples.")
    ],
    json: Json = False,
) -> None:
    """Start a cluster here, and scale it as FILE says.

    Its head is this machine. If it runs already, it goes on as the file says now; nothing that runs is ended. A mistake
    in the file is told with its line.

    \b
    Examples:
      sudo shoal cluster up shoal/configs/local.yaml
      sudo shoal cluster up aws.yaml
    """
    session.check_here("cluster up")
    from shoal.cluster.scaling import commands

    done = commands.up(settings.load(), file, console.steps)
    if json:
        console.print_json({"cluster": done.cluster.cluster, "ray_address": done.cluster.ray_address,
                            "started": done.started})  # fmt: skip
        return
    state = "is up" if done.started else "goes on"
    console.err().print(f"The cluster {state}, and scales as {file} says; `shoal cluster status` shows how.")


@cluster.command("status")
def status(json: Json = False) -> None:
    """Show how many machines of each type run, and why.

    Also how many are launched, wanted and drained.

    \b
    Examples:
      shoal cluster status
      shoal cluster status --json | jq '.machines[] | select(.state == "draining")'
    """
    session.check_here("cluster status")
    from shoal.cluster.scaling import commands, planning

    plan = commands.status(settings.load().state_dir)
    if json:
        console.print_json(plan)
        return
    console.print_table(_COLUMNS, [_row(name, kind) for name, kind in plan["types"].items()])
    for line in planning.told(plan, time.time()):
        console.out().print(line, markup=False, highlight=False)


@cluster.command("down")
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also remove images, caches and logs.")] = False,
) -> None:
    """End all machines of the cluster, and the head: as `shoal down`.

    If a region does not answer, its machines may still run: the command says so, and can be run again.

    \b
    Examples:
      sudo shoal cluster down
    """
    from shoal.cli import cluster as local

    local.down(purge)


def _row(name: str, kind: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (str(kind[each] or "") for each in ("running", "launching", "wanted", "draining", "min"))
    return (name, *numbers, str(kind["max"]), f"{kind['price']:g}" if kind["price"] else "")
