"""`shoal rollout`: maps in progress, of whatever program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.options import EnvironmentName, Json
from shoal.cli.session import with_cluster

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.rollouts import RolloutInfo

rollout = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Rollouts in progress: how far each `shoal.map` is."
)

_COLUMNS = ("ID", "NAME", "ENVIRONMENT", "STATE", "DONE", "OF", "FAILED", "RUNNING", "MEAN", "TOOK", "OWNER")

Id = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Its id (ro-…).", show_default=False)]


@rollout.command("ls")
def ls(environment: EnvironmentName = None, json: Json = False) -> None:
    """List the maps that run, and the last ones that ended.

    A map reports itself once it has run for a second.

    \b
    Examples:
      shoal rollout ls
      shoal rollout ls --json | jq '.[] | select(.state == "running")'
    """

    async def body(client: Client) -> Sequence[RolloutInfo]:
        return await client.rollouts.aio(environment=environment)

    none = "There are no rollouts; `shoal.map(function, items, name=…)` in Python starts one."
    console.print_listing(with_cluster(body), _COLUMNS, _row, none, json=json)


@rollout.command("show")
def show(rollout_id: Id) -> None:
    """Show a rollout with its rewards over items, as JSON.

    \b
    Examples:
      shoal rollout show ro-2fq7c3j5kx6n4a7b | jq .rewards.mean
    """

    async def body(client: Client) -> RolloutInfo:
        return await client.rollout.aio(rollout_id)

    console.print_json(with_cluster(body).to_dict())


def _row(info: RolloutInfo, now: float) -> tuple[str, ...]:
    total = "?" if info.total is None else str(info.total)
    figures = (str(info.done), total, str(info.failed or ""), str(info.running or ""))
    mean = "" if info.mean is None else f"{info.mean:.4g}"
    took = console.age((info.ended_at or now) - info.started_at)
    return info.id, info.name or "", info.environment, info.state.value, *figures, mean, took, info.owner
