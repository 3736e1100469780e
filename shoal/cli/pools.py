"""`shoal pool`: sandboxes that are kept ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.image_build import image_of
from shoal.cli.options import EnvironmentName, Json, Secrets, amount, mebibytes, seconds, secrets
from shoal.cli.session import with_cluster
from shoal.cli.spec_options import parsed, with_spec_options
from shoal.model.errors import InvalidRequest
from shoal.model.pools import NOT_OF_A_POOL

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.model.pools import PoolInfo

pool = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Pools: sandboxes that are kept ready to be taken."
)

_COLUMNS = ("NAME", "ENVIRONMENT", "IMAGE", "SIZE", "READY", "MAKING", "IN USE", "TAKEN", "MISSED", "AGE", "PROBLEM")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The pool's name.", show_default=False)]
Least = Annotated[int, typer.Option("--min", metavar="N", help="So many are ready even if none is taken.")]
Most = Annotated[
    int | None, typer.Option("--max", metavar="N", help="The most that are ready, as more are taken; default: --min.")
]


@pool.command("create")
@with_spec_options(without=NOT_OF_A_POOL)
def create(
    name: Name,
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A reference, id or name; or FILE.py[:NAME].", show_default=False)
    ],
    least: Least = 1,
    most: Most = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of another of that name.")] = False,
    cpu: Annotated[str | None, typer.Option(metavar="CORES", help="Guaranteed cores, or REQUEST:LIMIT.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="MIB", help="Guaranteed memory (512, 2g), or REQUEST:LIMIT.")
    ] = None,
    disk: Annotated[str | None, typer.Option(metavar="MIB", help="Most it may write (512, 2g).")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Lifetime of what is taken (90s, 15m).")] = None,
    idle_timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="End what is taken after this time without a process.")
    ] = None,
    secret: Secrets = None,
    json: Json = False,
    **spec_options: str | bool | None,
) -> None:
    """Keep sandboxes ready.

    What asks for the same image, resources, network, runtime and host name takes one by itself: `shoal run` as well as
    `Sandbox.create` and `Pool.take` in Python.

    \b
    Examples:
      shoal pool create python shoal/base --min 10 --max 50
      shoal pool create big shoal/base --min 2 --cpu 2 --memory 4g --environment build
    """
    size = mebibytes("disk", disk)
    if isinstance(size, tuple):
        raise InvalidRequest(f"--disk: {disk!r} is not one size", field="disk")
    options = {
        **parsed(spec_options),
        "image": image_of(image),
        "secrets": secrets(secret),
        "cpu": amount("cpu", cpu),
        "memory": mebibytes("memory", memory),
        "disk": size,
        "timeout": seconds("timeout", timeout),
        "idle_timeout": seconds("idle-timeout", idle_timeout),
    }

    async def body(client: Client) -> PoolInfo:
        from shoal.client.pools import Pool

        made = await Pool.create.aio(name, min_ready=least, max_ready=most, replace=replace, client=client, **options)
        return await made.info.aio()

    _print(with_cluster(body), json, "is made")


@pool.command("ls")
def ls(environment: EnvironmentName = None, json: Json = False) -> None:
    """List pools, with what is ready of each.

    \b
    Examples:
      shoal pool ls
      shoal pool ls --json | jq '.[].use.ready'
    """

    async def body(client: Client) -> list[PoolInfo]:
        from shoal.client.pools import Pool

        return [each._info for each in await Pool.list.aio(environment=environment, client=client)]

    none = "There are no pools; make one with `shoal pool create NAME IMAGE`."
    console.print_listing(with_cluster(body), _COLUMNS, _row, none, json=json)


@pool.command("resize")
def resize(
    name: Name, least: Least, most: Most = None, environment: EnvironmentName = None, json: Json = False
) -> None:
    """Change how many a pool keeps ready; those beyond --max end.

    \b
    Examples:
      shoal pool resize python --min 50 --max 200
      shoal pool resize python --min 0
    """

    async def body(client: Client) -> PoolInfo:
        from shoal.client.pools import Pool

        found = await Pool.get.aio(name, environment=environment, client=client)
        return await found.resize.aio(least, most)

    _print(with_cluster(body), json, "has its new size")


@pool.command("rm")
def rm(name: Name, environment: EnvironmentName = None) -> None:
    """Delete a pool. What is ready ends; sandboxes that were taken from it live on.

    \b
    Examples:
      shoal pool rm python
    """

    async def body(client: Client) -> None:
        from shoal.client.pools import Pool

        await (await Pool.get.aio(name, environment=environment, client=client)).delete.aio()

    with_cluster(body)
    console.err().print(f"{name} is deleted.", markup=False)


def _print(info: PoolInfo, json: bool, what: str) -> None:
    if json:
        console.print_json(info.to_dict())
    else:
        size = f"{info.min_ready} to {info.max_ready}"
        console.err().print(f"{info.name} {what}: {info.use.ready} are ready of {size}.", markup=False)


def _row(info: PoolInfo, now: float) -> tuple[str, ...]:
    use = info.use
    figures = (use.ready, use.making, use.in_use, use.taken, use.missed)
    size = f"{info.min_ready} to {info.max_ready}"
    age = console.age(now - info.created_at)
    return info.name, info.environment, info.spec.image, size, *map(str, figures), age, use.problem or ""
