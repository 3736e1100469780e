"""`shoal join`, `shoal leave` and `shoal node`: the machines of a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console, session, settings
from shoal.cli.nodes import print_nodes
from shoal.cli.options import Json, WithGvisor, mebibytes, pairs, seconds
from shoal.cli.session import with_cluster
from shoal.model import cluster_file, join_token
from shoal.model.errors import FailedPrecondition, InvalidRequest

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.info import NodeInfo

node = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The cluster's machines: list, cordon and drain them."
)


def join(
    head: Annotated[
        str | None,
        typer.Argument(
            metavar="HEAD", help="Ray's address there, host:port; default: as last time.", show_default=False
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Read the join token from it, - for standard input; not SHOAL_JOIN_TOKEN.",
        ),
    ] = None,
    address_ip: Annotated[
        str | None,
        typer.Option(metavar="IP", help="This machine's address in the cluster; default: from where it reaches HEAD."),
    ] = None,
    region: Annotated[str | None, typer.Option(help="Its region, for sandboxes that ask for one.")] = None,
    zone: Annotated[str | None, typer.Option(help="Its zone.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs that sandboxes may request; default: all.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="MIB", help="Memory that they may request (4096, 4g).")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs; default: those that Ray finds.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="A Ray label; may be repeated."),
    ] = None,
    with_gvisor: WithGvisor = False,
    json: Json = False,
) -> None:
    """Make this machine a node of a cluster, or repair it.

    Needs root and Linux and, where sandboxes cannot be started directly, Docker, which it installs on Debian and
    Ubuntu. The head must listen on an address that this machine reaches (`shoal up --address-ip IP`), and reach this
    machine. The token is what `shoal node token` prints there; without --token-file and SHOAL_JOIN_TOKEN it is asked
    for.

    \b
    Examples:
      sudo shoal join 10.0.0.5:6379
      ssh 10.0.0.5 sudo shoal node token | sudo shoal join 10.0.0.5 --token-file - --region eu
      sudo shoal join
    """
    session.check_here("join")
    from shoal.cluster.local import join as local_join

    loaded = settings.load()
    size = mebibytes("memory", memory)
    if isinstance(size, tuple):
        raise InvalidRequest(f"--memory: {memory!r} is not one size", field="memory")
    options = local_join.JoinOptions(
        head=head,
        token=None if head is None else _token(head, token_file),
        address=address_ip,
        region=region,
        zone=zone,
        cpus=cpus,
        memory=size,
        gpus=gpus,
        labels=pairs("label", label),
        with_gvisor=with_gvisor,
    )
    done = local_join.join(loaded, options, console.steps)
    if json:
        console.print_json({"head": done.machine.head, "address": done.machine.address, "name": done.machine.name,
                            "cluster": done.machine.cluster, "started": done.started})  # fmt: skip
        return
    state = "has joined" if done.started else "was part of"
    console.err().print(f"This machine, {done.machine.address}, {state} the cluster at {done.machine.head}.")


def leave(
    force: Annotated[
        bool,
        typer.Option("--force", help="End what runs here (reason: evicted); leave even if the head does not answer."),
    ] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long to wait for the ends of what runs here.")
    ] = "60s",
) -> None:
    """Take this machine out of its cluster.

    What Shoal made here is removed. From now on no new sandboxes start here. It waits for those that run; if they
    outlast --timeout, it stays cordoned: try again, or use --force. Images, caches and logs stay in the state
    directory.

    \b
    Examples:
      sudo shoal leave --timeout 2h
      sudo shoal leave --force
    """
    session.check_here("leave")
    from shoal.cluster.local import join as local_join

    wait_s = seconds("timeout", timeout)
    assert wait_s is not None
    found = local_join.leave(settings.load(), force=force, timeout_s=wait_s, report=console.steps)
    console.err().print("This machine has left the cluster." if found else "This machine was in no cluster.")


@node.command("token")
def token() -> None:
    """Print the token by which machines join this machine's cluster.

    Whoever has it can do everything in the cluster and on its machines. It is valid until the cluster is started anew.

    \b
    Examples:
      sudo shoal node token
      sudo shoal node token | ssh root@10.0.0.6 shoal join 10.0.0.5:6379 --token-file -
    """
    session.check_here("node token")
    cluster = cluster_file.read(settings.load().state_dir)
    if cluster is None:
        raise FailedPrecondition("no cluster runs on this machine; run `shoal up` first", state="no_cluster")
    typer.echo(join_token.of_cluster(cluster).text())
    console.err().print(f"On the other machine, as root: shoal join {cluster.ray_address}", markup=False)
    if cluster.ray_address.startswith("127.0.0.1:"):
        console.err().print(
            "But Ray listens on the loopback only, and takes no other nodes: `shoal down`, then "
            "`shoal up --address-ip IP`."
        )


@node.command("ls")
def list_nodes(json: Json = False) -> None:
    """List the cluster's nodes, what is free there, and cordons.

    \b
    Examples:
      shoal node ls
      shoal node ls --json | jq '.[] | select(.cordon)'
    """
    found = [each.to_dict() for each in with_cluster(lambda client: client.nodes.aio())]
    if json:
        console.print_json(found)
    else:
        print_nodes(found)


Node = Annotated[
    str, typer.Argument(metavar="NODE", help="Its host name, id or the id's beginning.", show_default=False)
]


@node.command("cordon")
def cordon(
    name: Node,
    why: Annotated[
        str, typer.Option("--why", metavar="TEXT", help="The reason, which `shoal node ls` shows.")
    ] = "by hand",
) -> None:
    """Start no new sandboxes on a node. What runs there goes on.

    \b
    Examples:
      shoal node cordon worker-3 --why 'disk replaced on Friday'
    """
    with_cluster(lambda client: _cordon(client, name, why))


@node.command("uncordon")
def uncordon(name: Node) -> None:
    """Let sandboxes start on a node again.

    \b
    Examples:
      shoal node uncordon worker-3
    """
    with_cluster(lambda client: _uncordon(client, name))


@node.command("drain")
def drain(
    name: Node,
    why: Annotated[
        str, typer.Option("--why", metavar="TEXT", help="The reason, which `shoal node ls` shows.")
    ] = "drained",
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="How long to wait for its sandboxes' ends.")
    ] = "1h",
    force: Annotated[bool, typer.Option("--force", help="End its sandboxes (reason: evicted).")] = False,
) -> None:
    """Empty a node and take it out of the cluster.

    It is cordoned first.

    All that Shoal did to the machine is undone; then `shoal leave` there stops Ray. If sandboxes outlast --timeout, the
    node stays cordoned.

    \b
    Examples:
      shoal node drain worker-3 --timeout 4h
      shoal node drain worker-3 --force --why 'rack power'
    """
    wait_s = seconds("timeout", timeout)
    assert wait_s is not None
    with_cluster(lambda client: _drain(client, name, why, force, wait_s))


async def _cordon(client: Client, name: str, why: str) -> None:
    info = await client.cordon.aio(await _id_of(client, name), why=why)
    console.err().print(f"No new sandboxes start on {info.hostname} ({info.id[:8]}).", markup=False)


async def _uncordon(client: Client, name: str) -> None:
    info = await client.uncordon.aio(await _id_of(client, name))
    console.err().print(f"Sandboxes start on {info.hostname} ({info.id[:8]}) again.", markup=False)


async def _drain(client: Client, name: str, why: str, force: bool, wait_s: float) -> None:
    node_id = await _id_of(client, name)
    await client.drain_node.aio(node_id, why=why, force=force, timeout=wait_s)
    called = name if name == node_id else f"{name} ({node_id[:8]})"
    console.err().print(f"{called} has left the cluster; `shoal leave` on it stops Ray there.", markup=False)


async def _id_of(client: Client, name: str) -> str:
    """Its id; the name itself where no node is called so: the cluster tells of those that have left."""
    found = one_of(await client.nodes.aio(), name)
    return name if found is None else found.id


def one_of(nodes: Sequence[NodeInfo], name: str) -> NodeInfo | None:
    """The node of that host name, machine name or id, or the only one whose id begins so."""
    if not name:
        raise InvalidRequest("NODE: it is empty; `shoal node ls` shows the nodes", field="node")
    found = [each for each in nodes if name in (each.hostname, each.machine, each.id)]
    found = found or [each for each in nodes if each.id.startswith(name)]
    if len(found) > 1:
        ids = ", ".join(each.id[:12] for each in found)
        raise InvalidRequest(f"NODE: {len(found)} nodes are called {name!r}; name one by its id: {ids}", field="node")
    return found[0] if found else None


def _token(head: str, file: str | None) -> join_token.JoinToken | None:
    """The token as the caller gave it; None: that of last time, if there was one."""
    from shoal.cluster.local import joined_file

    if file is not None:
        try:
            text = sys.stdin.read(join_token.MOST_BYTES + 1) if file == "-" else Path(file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"--token-file: {file} cannot be read: {error}", field="token_file") from None
        return join_token.parse(text)
    named = os.environ.pop(join_token.VARIABLE, None)  # what is started from here shall not inherit it
    if named:
        return join_token.parse(named)
    if joined_file.path_in(settings.load().state_dir).exists() or not sys.stdin.isatty():
        return None
    import getpass

    return join_token.parse(getpass.getpass(f"Join token of {head}: "))
