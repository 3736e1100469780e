"""`shoal up`, `down`, `status` and `doctor`: the cluster on this machine."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import console, remote, session, settings
from shoal.cli.exits import EXIT_CODES
from shoal.cli.nodes import print_nodes
from shoal.cli.options import Json, WithGvisor
from shoal.cli.session import with_cluster
from shoal.client import config_file
from shoal.model import cluster_file
from shoal.model.errors import InvalidRequest, ShoalError, Unavailable

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.cluster_file import ClusterFile


def up(
    address_ip: Annotated[
        str,
        typer.Option(
            metavar="IP", help="The address Ray listens on; any other than loopback lets other machines join."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Ray's port; default 6379, or any free one if that is taken.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="This machine's region, for sandboxes that ask for one.")] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Also start Ray's dashboard.")] = False,
    with_gvisor: WithGvisor = False,
    no_api: Annotated[bool, typer.Option("--no-api", help="Serve no HTTP API.")] = False,
    roll: Annotated[
        bool, typer.Option("--roll", help="Replace the API's replicas and gateway while they serve, and nothing else.")
    ] = False,
    json: Json = False,
) -> None:
    """Start a cluster on this machine, or repair the one there is.

    As root it starts sandboxes directly, where that works (`shoal doctor` tells); else it uses the Docker engine that
    runs, or starts one of its own. It builds the base image if it is missing, and on Debian or Ubuntu installs missing
    packages. A cluster that runs stays as it is.

    \b
    Examples:
      sudo shoal up
      SHOAL_POOLS__READY=8 shoal up
      shoal up --address-ip 10.0.0.5 --region eu
      SHOAL_API__PORT=0 shoal up
      SHOAL_ENGINE=docker shoal up
      shoal up --with-gvisor
      shoal up --roll
    """
    session.check_here("up")
    from shoal.cluster.local import up as local_cluster

    loaded = settings.load()
    if roll:
        cluster = local_cluster.roll(loaded, console.steps)
        if json:
            console.print_json(_describe(cluster))
        return
    if no_api:
        loaded = loaded.model_copy(update={"api": loaded.api.model_copy(update={"enabled": False})})
    options = local_cluster.UpOptions(address_ip, port, region, dashboard, with_gvisor)
    done = local_cluster.up(loaded, options, console.steps)
    if json:
        console.print_json({**_describe(done.cluster), "nodes": done.nodes, "started": done.started})
        return
    if with_gvisor and not done.started:
        console.err().print("A node that runs learns of a new gVisor with the next `shoal down` and `shoal up`.")
    state = "is up" if done.started else "was up already"
    console.err().print(f"The cluster {state}: Ray at {done.cluster.ray_address}, nodes: {done.nodes}.")
    if done.cluster.api_url:
        console.err().print(f"The HTTP API is at {done.cluster.api_url}; a token for it is in {config_file.path()}.")
        if loaded.api.dashboard:
            console.err().print(f"The dashboard is at {done.cluster.api_url}/; `shoal dashboard` opens it, signed in.")
    console.err().print("Try: shoal run shoal/base python3 -c 'print(6 * 7)'")


def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove persistent sandboxes, images, caches and logs.")
    ] = False,
) -> None:
    """Stop this machine's cluster and remove what it made.

    This works even if parts of the cluster have died. Persistent sandboxes are stopped, and kept for the next `shoal
    up`. Images, caches and logs stay, so that the next start is fast.

    \b
    Examples:
      shoal down
      shoal down --purge
    """
    session.check_here("down")
    from shoal.cluster.local import up as local_cluster

    loaded = settings.load()
    found = local_cluster.down(loaded, purge=purge, report=console.steps)
    console.err().print("The cluster is down." if found else "There was no cluster.")
    if kept := local_cluster.kept_sandboxes(loaded):
        console.err().print(f"Persistent sandboxes that are kept: {kept}. `shoal down --purge` removes them.")


def status(
    json: Json = False,
    env: Annotated[
        bool, typer.Option("--env", help="Print the variables that a Ray program needs to join the cluster.")
    ] = False,
) -> None:
    """Show whether the cluster runs, and its nodes. The exit code is 69 if it does not run.

    Like all commands it looks for the cluster in --url, SHOAL_URL, RAY_ADDRESS, this machine and the last `shoal
    login`, in this order.

    \b
    Examples:
      shoal status
      shoal status --json | jq .nodes
      eval "$(shoal status --env)"; python my_ray_program.py
    """
    elsewhere = session.api_named()
    if elsewhere is None:
        state_dir = settings.load().state_dir
        cluster = cluster_file.read(state_dir)
        # What --env prints replaces the variable.
        ray_address = None if env else os.environ.get("RAY_ADDRESS") or None
        if cluster is not None and ray_address in (None, cluster.ray_address):
            _status_here(cluster, json, env)
            return
        if cluster is None and ray_address is None and _status_joined(state_dir, json, env):
            return
        elsewhere = ray_address or config_file.read().default
        if elsewhere is None:
            if json:
                console.print_json({"running": False, "state_dir": str(state_dir)})
            raise _not_running(json, f"no cluster was started from {state_dir}; run `shoal up`, or `shoal login URL`")
    if env:
        raise InvalidRequest(
            f"--env: only for a cluster that `shoal up` started on this machine, not for {elsewhere}",
            field="env",
        )
    remote.status(elsewhere, json)


def doctor(
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure how quick this machine is at what sandboxes need.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what this machine lacks and how to fix it. The exit code is 1 if something is missing.

    With --bench: its figures beside the usual ones, and what to change; with a create and an exec, if a cluster runs
    here. Takes some seconds, and leaves nothing.

    \b
    Examples:
      shoal doctor
      shoal doctor --bench
      shoal doctor --json | jq '.[] | select(.ok | not)'
    """
    session.check_here("doctor")
    if bench:
        from shoal.cli.bench import bench as measure

        measure(json)
        return
    from shoal.cluster.local.doctor import examine

    checks = list(examine(settings.load()))
    if json:
        console.print_json([check.to_dict() for check in checks])
    else:
        out = console.out()
        for check in checks:
            mark = "[green]✓[/green]" if check.ok else "[red]✗[/red]"
            out.print(f"{mark} {check.name}:", end=" ")
            out.print(check.detail, markup=False)
            if not check.ok:
                out.print(f"    → {check.remedy}", markup=False)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _status_here(cluster: ClusterFile, json: bool, env: bool) -> None:
    from shoal.cluster.local import api as local_api
    from shoal.cluster.local import state as local_state
    from shoal.cluster.local import up as local_cluster
    from shoal.cluster.objects import state as objects_state

    if env:
        for name, value in cluster_file.ray_environment(cluster).items():
            typer.echo(f"export {name}={shlex.quote(value)}")
        return
    health = local_cluster.health(cluster)
    report: dict[str, Any] = {
        **_describe(cluster),
        "engine": health.engine,
        "ray": health.ray,
        "api": health.api,
        "objects": objects_state.look(local_state.settings_of(cluster)).to_dict(),
        "running": False,
        "nodes": [],
    }
    problem = None
    if health.good:
        if health.api is not None:
            report["replicas"] = local_api.replicas(cluster)
        try:
            report["nodes"] = with_cluster(_nodes)
            report["running"] = True
        except InvalidRequest:
            raise  # the options are wrong; the cluster was not contacted
        except ShoalError as error:
            problem = error.message
    if json:
        console.print_json(report)
    elif report["running"]:
        _print_status(report)
    if not report["running"]:
        dead = [part for part, well in (("the engine", health.engine), ("Ray", health.ray)) if not well]
        reason = problem or f"{' and '.join(dead)} does not answer"
        raise _not_running(json, f"the cluster is broken: {reason}; run `shoal up` to repair it")


def _status_joined(state_dir: Path, json: bool, env: bool) -> bool:
    """Tells of the node that this machine is; False where it has not joined a cluster."""
    from shoal.cluster.local import joined_file

    joined = joined_file.read(state_dir)
    if joined is None:
        return False
    from shoal.cluster.local import join as local_join

    if env:
        for name, value in cluster_file.driver_environment(joined.head, joined.auth_token_path).items():
            typer.echo(f"export {name}={shlex.quote(value)}")
        return True
    well = local_join.well(joined)
    if json:
        told = {"cluster": joined.cluster, "head": joined.head, "address": joined.address, "machine": joined.name}
        console.print_json({**told, "running": well})
    elif well:
        typer.echo(f"This machine, {joined.address}, is a node of the cluster at {joined.head}: Ray and engine run.")
    if not well:
        raise _not_running(json, f"of this node of the cluster at {joined.head} a part has died; run `shoal join`")
    return True


async def _nodes(client: Client) -> list[dict[str, Any]]:
    return [node.to_dict() for node in await client.nodes.aio()]


def _describe(cluster: ClusterFile) -> dict[str, Any]:
    return {
        "cluster": cluster.cluster,
        "ray_address": cluster.ray_address,
        "engine_kind": cluster.settings.get("engine", "docker"),
        "engine_address": cluster.engine_address,
        "own_engine": cluster.engine is not None,
        "auth_token_path": cluster.auth_token_path,
        "started_at": cluster.started_at,
        "api_url": cluster.api_url or None,
    }


def _print_status(report: dict[str, Any]) -> None:
    typer.echo(
        f"Cluster {report['cluster']}: Ray at {report['ray_address']}, "
        f"engine {report['engine_kind']} at {report['engine_address']}"
    )
    if report["api"] is not None:
        typer.echo(f"API at {report['api_url']}: {_api_state(report)}")
    typer.echo(f"Object storage: {_objects_state(report['objects'])}")
    print_nodes(report["nodes"])


def _api_state(report: dict[str, Any]) -> str:
    if not report["api"]:
        return "does not answer; run `shoal up` to repair it"
    return f"answers, {report['replicas']} replicas"


def _objects_state(found: dict[str, str]) -> str:
    told = {
        "configured": "{where}",
        "idle": "on this machine, not in use yet",
        "running": "on this machine, answers at {where}",
        "died": "on this machine, is being started anew",
    }
    return told[found["state"]].format(**found)


def _not_running(json: bool, message: str) -> Exception:
    """With `json`, the error is already in the output."""
    return typer.Exit(EXIT_CODES[Unavailable]) if json else Unavailable(message)
