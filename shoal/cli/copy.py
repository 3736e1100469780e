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
from shoal.model.errors import InvalidRequest, PathNotFound

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.files import FileSystem, Transfer


@dataclass(frozen=True, slots=True)
class Place:
    """One end of a copy: a path here (`sandbox` None) or in a sandbox."""

    sandbox: str | None
    path: str


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="PATH here, or SANDBOX:PATH.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DST", help="PATH here, or SANDBOX:PATH.", show_default=False)],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
) -> None:
    """Copy a file or a tree into a sandbox, or out of one.

    As `cp -r` does: into DST where that is a directory, else to DST. Paths in a sandbox are absolute. A path here that holds a colon
    is written with a slash, as ./a:b.

    \b
    Examples:
      shoal cp main.py web:/srv/main.py
      shoal cp src web:/srv/
      shoal cp web:/var/log ./logs
    """
    from_, to = place(source), place(target)
    if (from_.sandbox is None) == (to.sandbox is None):
        raise InvalidRequest(
            "SRC, DST: exactly one of them must be in a sandbox, written SANDBOX:PATH, such as web:/srv/main.py",
            field="dst",
        )
    if to.sandbox is not None:
        inside = to.sandbox
        moved = with_cluster(lambda client: _upload(client, inside, Path(from_.path), to.path))
    elif from_.sandbox is not None:
        inside = from_.sandbox
        moved = with_cluster(lambda client: _download(client, inside, from_.path, Path(to.path)))
    for name in moved.skipped:
        console.print_error(f"{name}: left out, as it is no file, directory or link that stays within the tree")
    if not quiet:
        console.err().print(f"{moved.files} file{'' if moved.files == 1 else 's'}, {moved.bytes:,} bytes")


def place(text: str) -> Place:
    """`SANDBOX:/path`, or a path here."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name in (".", ".."):
        return Place(None, text)
    if not path.startswith("/"):
        raise InvalidRequest(
            f"{text}: {path!r} is relative; paths in a sandbox are absolute, such as {name}:/{path}", field="path"
        )
    return Place(name, path)


async def _upload(client: Client, name: str, source: Path, target: str) -> Transfer:
    size, is_tree, own_name = await asyncio.to_thread(_describe, source)
    files = (await find(client, name)).files
    if await _is_directory(files, target) or (target.endswith("/") and is_tree):
        target = str(PurePosixPath(target) / own_name)
    with console.byte_bar(own_name, size) as moved:
        return await files.upload.aio(source, target, progress=moved)


async def _download(client: Client, name: str, source: str, target: Path) -> Transfer:
    files = (await find(client, name)).files
    entry = await files.stat.aio(source)
    own_name = PurePosixPath(source).name
    into = await asyncio.to_thread(target.is_dir)
    if into and own_name:
        target /= own_name
    with console.byte_bar(own_name or "/", entry.size if entry.kind == "file" else None) as moved:
        return await files.download.aio(source, target, progress=moved)


async def _is_directory(files: FileSystem, path: str) -> bool:
    try:
        return (await files.stat.aio(path)).kind == "dir"
    except PathNotFound:
        return False


def _describe(source: Path) -> tuple[int, bool, str]:
    """Bytes to be moved (near enough for a bar), whether it is a tree, and its own name."""
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
                continue  # gone meanwhile: the copy itself will tell, if it matters
    return total, True, source.resolve().name
