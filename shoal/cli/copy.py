"""`shoal cp`: files and trees in and out of sandboxes."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.session import find, with_cluster
from shoal.model.errors import InvalidRequest, PathNotFound, RelativePath

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.files import FileSystem, Transfer


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A path in a sandbox, given as SANDBOX:PATH; `sandbox` is a name or an id."""

    sandbox: str
    path: str


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A local PATH, or SANDBOX:PATH.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DST", help="A local PATH, or SANDBOX:PATH.", show_default=False)],
    user: Annotated[
        str | None,
        typer.Option(help="Who reads and writes in the sandbox; default: the sandbox's user.", show_default=False),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            help="Most bytes to copy out of a sandbox; default: 16 GiB.", metavar="BYTES", min=0, show_default=False
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
) -> None:
    """Copy a file or a tree into a sandbox, or out of one.

    Works like `cp -r`: if DST is a directory, the copy goes into it. Paths in a sandbox are absolute.
    Write a local path that holds a colon with a slash, such as ./a:b.

    \b
    Examples:
      shoal cp main.py web:/srv/main.py
      shoal cp src web:/srv/
      shoal cp web:/var/log ./logs
    """
    remote_source, remote_target = parse_path(source), parse_path(target)
    if remote_target is not None and remote_source is None:
        moved = with_cluster(lambda client: _upload(client, Path(source), remote_target, user))
    elif remote_source is not None and remote_target is None:
        moved = with_cluster(lambda client: _download(client, remote_source, Path(target), user, max_bytes))
    else:
        raise InvalidRequest(
            "SRC, DST: exactly one of them must be in a sandbox, written SANDBOX:PATH, such as web:/srv/main.py",
            field="dst",
        )
    for name in moved.skipped:
        console.print_error(f"{name}: skipped: not a file, a directory or a link within the tree")
    if not quiet:
        console.err().print(f"{moved.files} file{'' if moved.files == 1 else 's'}, {moved.bytes:,} bytes")


def parse_path(text: str) -> RemotePath | None:
    """The remote path that `text` names; None if it is a path on this machine. `InvalidRequest` if it is relative."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name in (".", ".."):
        return None
    if not path.startswith("/"):
        raise RelativePath(
            f"{text}: {path!r} is relative; paths in a sandbox are absolute, such as {name}:/{path}", field="path"
        )
    return RemotePath(name, path)


async def _upload(client: Client, source: Path, remote: RemotePath, user: str | None) -> Transfer:
    size, is_tree, own_name = await asyncio.to_thread(describe, source)
    files, target = (await find(client, remote.sandbox)).files, remote.path
    if await _is_directory(files, target, user) or (target.endswith("/") and is_tree):
        target = str(PurePosixPath(target) / own_name)
    with console.byte_bar(own_name, size) as moved:
        return await files.upload.aio(source, target, user=user, progress=moved)


async def _download(
    client: Client, remote: RemotePath, target: Path, user: str | None, max_bytes: int | None
) -> Transfer:
    from shoal.client.files import MAX_TREE_BYTES

    files = (await find(client, remote.sandbox)).files
    entry = await files.stat.aio(remote.path, user=user)
    own_name = PurePosixPath(remote.path).name
    into = await asyncio.to_thread(target.is_dir)
    if into and own_name:
        target /= own_name
    with console.byte_bar(own_name or "/", entry.size if entry.kind == "file" else None) as moved:
        most = MAX_TREE_BYTES if max_bytes is None else max_bytes
        return await files.download.aio(remote.path, target, max_bytes=most, user=user, progress=moved)


async def _is_directory(files: FileSystem, path: str, user: str | None) -> bool:
    try:
        return (await files.stat.aio(path, user=user)).kind == "dir"
    except PathNotFound:
        return False


def describe(source: Path) -> tuple[int, bool, str]:
    """Bytes to move (an estimate, for the progress bar), whether it is a tree, and its name."""
    try:
        if not source.is_dir():
            return source.stat().st_size, False, source.name
    except OSError as error:
        raise InvalidRequest(f"SRC: {source}: {error.strerror}", field="src") from None
    total = 0
    for directory, _, names in os.walk(source):
        for name in names:
            try:
                total += (Path(directory) / name).lstat().st_size
            except OSError:
                continue  # it vanished; the copy itself reports what matters
    return total, True, source.resolve().name
