"""`shoal volume`: directories that outlive sandboxes."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.copy import describe
from shoal.cli.options import EnvironmentName, Json, mebibytes
from shoal.cli.session import with_cluster
from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.cluster import Client
    from shoal.client.files import Transfer
    from shoal.client.volume.volume import Volume
    from shoal.model.volumes import VolumeInfo, VolumesUse, VolumeVersion
    from shoal.wire.agent import Entry

volume = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Volumes: directories that outlive sandboxes.")

_COLUMNS = ("NAME", "ID", "ENVIRONMENT", "HOLDS", "SIZE", "FILES", "AGE", "NOTE")
_ENTRIES = ("MODE", "SIZE", "NAME")

Name = Annotated[str, typer.Argument(metavar="VOLUME", help="Its name or its id (vol-…).", show_default=False)]
Size = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The most that it holds, in whole GiB (10g); default: no limit.")
]
Files = Annotated[
    int | None, typer.Option(metavar="N", help="The most files and directories; default: no limit.", min=1)
]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="Its name.", show_default=False)]
PathIn = Annotated[str, typer.Argument(metavar="PATH", help="A path in the volume.")]


@volume.command("create")
def create(
    name: Name, size: Size = None, files: Files = None, environment: EnvironmentName = None, json: Json = False
) -> None:
    """Make a volume.

    \b
    Examples:
      shoal volume create data
      shoal volume create cache --size 20g --files 1000000
      shoal run -v data:/data shoal/base touch /data/here
    """
    limit = _bytes(size)

    async def body(client: Client) -> VolumeInfo:
        from shoal.client.volume.volume import Volume

        made = await Volume.create.aio(name, size=limit, files=files, environment=environment, client=client)
        return made._info

    made = with_cluster(body)
    if json:
        console.print_json(made.to_dict())
    else:
        console.err().print(f"{made.name} is made ({made.id}).", markup=False)


@volume.command("ls")
def ls(
    name: Annotated[str | None, typer.Argument(metavar="[VOLUME]", help="List the files of this one.")] = None,
    path: PathIn = "",
    environment: EnvironmentName = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="List those that can be restored.")] = False,
    json: Json = False,
) -> None:
    """List volumes, or the files in one.

    \b
    Examples:
      shoal volume ls
      shoal volume ls data
      shoal volume ls data results/run-7
      shoal volume ls --deleted
    """
    if name is None:
        _list(environment, deleted, json)
        return

    async def body(client: Client) -> list[Entry]:
        return list(await (await _find(client, name, environment)).files.list.aio(path))

    entries = with_cluster(body)
    if json:
        console.print_json([asdict(each) for each in entries])
    elif entries:
        rows = [(f"{each.mode & 0o7777:04o}", f"{each.size:,}", _named(each)) for each in entries]
        console.print_table(_ENTRIES, rows)
    else:
        console.err().print("It is empty.")


@volume.command("put")
def put(
    name: Name,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A local file or tree.", show_default=False)],
    path: PathIn = "",
    environment: EnvironmentName = None,
) -> None:
    """Copy a local file or tree into a volume.

    A file goes to PATH, or into it if it ends with a slash or is left out; the content of a directory goes into the
    directory PATH.

    \b
    Examples:
      shoal volume put data train.csv
      shoal volume put data ./corpus corpus
    """

    async def body(client: Client) -> Transfer:
        size, is_tree, own = await asyncio.to_thread(describe, source)
        found = await _find(client, name, environment)
        target = path if is_tree or (path and not path.endswith("/")) else f"{path}{own}"
        with console.byte_bar(own, size) as moved:
            return await found.files.put.aio(source, target, progress=moved)

    _moved(with_cluster(body))


@volume.command("get")
def get(
    name: Name,
    path: PathIn,
    target: Annotated[Path, typer.Argument(metavar="DST", help="A local path.")] = Path(),
    environment: EnvironmentName = None,
) -> None:
    """Copy a file or tree out of a volume.

    \b
    Examples:
      shoal volume get data results/run-7.json
      shoal volume get data results ./results
    """

    async def body(client: Client) -> Transfer:
        found = await _find(client, name, environment)
        with console.byte_bar(path, None) as moved:
            return await found.files.get.aio(path, target, progress=moved)

    _moved(with_cluster(body))


@volume.command("rm")
def rm(
    name: Name,
    path: Annotated[str | None, typer.Argument(metavar="[PATH]", help="Remove this in it, not the volume.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Remove a directory with its content.")] = False,
    now: Annotated[bool, typer.Option("--now", help="So that it cannot be restored.")] = False,
    environment: EnvironmentName = None,
) -> None:
    """Delete a volume, or a file in one.

    Sandboxes that have the volume mounted keep it. For a day (`volumes.grace`) `shoal volume restore` brings it back.

    \b
    Examples:
      shoal volume rm data
      shoal volume rm data old -r
    """

    async def body(client: Client) -> None:
        found = await _find(client, name, environment)
        if path is None:
            await found.delete.aio(now=now)
        else:
            await found.files.remove.aio(path, recursive=recursive)

    with_cluster(body)
    console.err().print(f"{name if path is None else path} is deleted.", markup=False)


@volume.command("restore")
def restore(name: Name, environment: EnvironmentName = None) -> None:
    """Bring a deleted volume back.

    That of an id, or the last that had the name.

    \b
    Examples:
      shoal volume ls --deleted
      shoal volume restore data
    """

    async def body(client: Client) -> None:
        from shoal.client.volume.volume import Volume

        await Volume.restore.aio(name, environment=environment, client=client)

    with_cluster(body)
    console.err().print(f"{name} is back.", markup=False)


@volume.command("usage")
def usage(
    name: Annotated[str | None, typer.Argument(metavar="[VOLUME]", help="Of this one alone.")] = None,
    environment: EnvironmentName = None,
    json: Json = False,
) -> None:
    """Tell what a volume holds, or all of an environment.

    Of all together, MOST is the environment's quota, and LIMITS what the volumes' own limits add up to.

    \b
    Examples:
      shoal volume usage data
      shoal volume usage
      shoal volume usage --environment team
    """
    if name is None:
        _total(environment, json)
        return

    async def body(client: Client) -> VolumeInfo:
        return await (await _find(client, name, environment)).info.aio()

    info = with_cluster(body)
    if json:
        console.print_json(info.to_dict())
        return
    use = info.use
    held, files = (0, 0) if use is None else (use.bytes, use.files)
    console.print_table(
        ("", "HOLDS", "MOST"),
        [
            ("bytes", f"{held:,}", "" if info.size is None else f"{info.size:,}"),
            ("files", f"{files:,}", "" if info.files is None else f"{info.files:,}"),
        ],
    )


@volume.command("limit")
def limit(name: Name, size: Size = None, files: Files = None, environment: EnvironmentName = None) -> None:
    """Change what a volume may hold.

    What is left out has no limit then.

    \b
    Examples:
      shoal volume limit data --size 100g
      shoal volume limit data
    """
    most = _bytes(size)

    async def body(client: Client) -> None:
        await (await _find(client, name, environment)).limit.aio(size=most, files=files)

    with_cluster(body)
    console.err().print(f"{name} has its new limits.", markup=False)


@volume.command("commit")
def commit(name: Name, environment: EnvironmentName = None) -> None:
    """Wait until what sandboxes have written and closed is durable.

    Another reader sees it then, too.

    \b
    Examples:
      shoal volume commit data
    """

    async def body(client: Client) -> None:
        await (await _find(client, name, environment)).commit.aio()

    with_cluster(body)
    console.err().print(f"{name} is committed.", markup=False)


@volume.command("cp")
def cp(
    source: Annotated[str, typer.Argument(metavar="VOLUME:PATH", help="A file or tree.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="VOLUME:PATH", help="What does not exist.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file.")] = False,
    environment: EnvironmentName = None,
) -> None:
    """Copy a file or tree within a volume, or into another.

    \b
    Examples:
      shoal volume cp data:raw data:raw-2
      shoal volume cp data:results archive:2026
    """
    (name, path), (other, to) = _split(source), _split(target)

    async def body(client: Client) -> None:
        found = await _find(client, name, environment)
        into = found if other == name else await _find(client, other, environment)
        await found.files.copy.aio(path, to, volume=into, overwrite=overwrite)

    with_cluster(body)
    console.err().print(f"{source} is copied.", markup=False)


@volume.command("rename")
def rename(name: Name, to: Annotated[str, typer.Argument(metavar="NAME")], environment: EnvironmentName = None) -> None:
    """Give a volume another name.

    \b
    Examples:
      shoal volume rename data data-2025
    """

    async def body(client: Client) -> None:
        await (await _find(client, name, environment)).rename.aio(to)

    with_cluster(body)
    console.err().print(f"{name} is {to} now.", markup=False)


@volume.command("snapshot")
def snapshot(name: Name, version: Version, environment: EnvironmentName = None) -> None:
    """Keep all files of a volume as a version.

    \b
    Examples:
      shoal volume snapshot data before-cleaning
      shoal volume versions data
      shoal volume revert data before-cleaning
    """

    async def body(client: Client) -> None:
        await (await _find(client, name, environment)).snapshot.aio(version)

    with_cluster(body)
    console.err().print(f"{name} has the version {version}.", markup=False)


@volume.command("versions")
def versions(
    name: Name,
    delete: Annotated[str | None, typer.Option(metavar="VERSION", help="Delete this one.")] = None,
    environment: EnvironmentName = None,
    json: Json = False,
) -> None:
    """List the versions of a volume, or delete one.

    \b
    Examples:
      shoal volume versions data
      shoal volume versions data --delete before-cleaning
    """

    async def body(client: Client) -> Sequence[VolumeVersion]:
        found = await _find(client, name, environment)
        if delete is not None:
            await found.delete_version.aio(delete)
        return await found.versions.aio()

    console.print_listing(
        with_cluster(body),
        ("VERSION", "AGE"),
        lambda each, now: (each.name, console.age(now - each.created_at)),
        f"{name} has no versions; make one with `shoal volume snapshot {name} NAME`.",
        json=json,
    )


@volume.command("revert")
def revert(name: Name, version: Version, environment: EnvironmentName = None) -> None:
    """Replace all files of a volume by those of a version.

    No sandbox may have it mounted. The version stays.

    \b
    Examples:
      shoal volume revert data before-cleaning
    """

    async def body(client: Client) -> None:
        await (await _find(client, name, environment)).revert.aio(version)

    with_cluster(body)
    console.err().print(f"{name} is as in {version}.", markup=False)


def _total(environment: str | None, json: bool) -> None:
    async def body(client: Client) -> VolumesUse:
        from shoal.client.volume.volume import Volume

        return await Volume.total_usage.aio(environment=environment, client=client)

    total = with_cluster(body)
    if json:
        console.print_json(total.to_dict())
        return

    def most(quota: int | None) -> str:
        return "" if quota is None else f"{quota:,}"

    console.print_table(
        ("", "HOLD", "LIMITS", "MOST"),
        [
            ("volumes", f"{total.volumes:,}", "", ""),
            ("bytes", f"{total.bytes:,}", f"{total.size_limits:,}", most(total.size_quota)),
            ("files", f"{total.files:,}", f"{total.files_limits:,}", most(total.files_quota)),
        ],
    )
    if total.unmeasured:
        console.print_error(f"{total.unmeasured} of them could not be measured now; try again")


def _split(text: str) -> tuple[str, str]:
    name, colon, path = text.partition(":")
    if not name or not colon:
        raise InvalidRequest(f"{text!r:.100} is no file of a volume; write VOLUME:PATH", field="path")
    return name, path


def _list(environment: str | None, deleted: bool, json: bool) -> None:
    async def body(client: Client) -> list[VolumeInfo]:
        from shoal.client.volume.volume import Volume

        return [each._info for each in await Volume.list.aio(environment=environment, deleted=deleted, client=client)]

    none = (
        "There are no deleted volumes."
        if deleted
        else "There are no volumes; make one with `shoal volume create NAME`."
    )
    console.print_listing(with_cluster(body), _COLUMNS, _row, none, json=json)


def _row(info: VolumeInfo, now: float) -> tuple[str, ...]:
    size = "" if info.size is None else f"{info.size >> 30} GiB"
    files = "" if info.files is None else f"{info.files:,}"
    note = "ephemeral" if info.ephemeral else ""
    if info.deleted_at is not None:
        note = f"deleted {console.age(now - info.deleted_at)} ago"
    holds = "" if info.use is None else _rounded(info.use.bytes)
    return info.name, info.id, info.environment, holds, size, files, console.age(now - info.created_at), note


def _rounded(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


async def _find(client: Client, name: str, environment: str | None) -> Volume:
    from shoal.client.volume.volume import Volume

    return await Volume.from_name.aio(name, environment=environment, client=client)


def _named(entry: Entry) -> str:
    return f"{entry.name}/" if entry.kind == "dir" else entry.name


def _moved(moved: Transfer) -> None:
    for name in moved.skipped:
        console.print_error(f"{name}: skipped: not a file, a directory or a link within the tree")
    console.err().print(f"{moved.files} file{'' if moved.files == 1 else 's'}, {moved.bytes:,} bytes")


def _bytes(size: str | None) -> int | None:
    found = mebibytes("size", size)
    if isinstance(found, tuple):
        raise InvalidRequest(f"--size: {size!r} is not one size", field="size")
    return None if found is None else found << 20
