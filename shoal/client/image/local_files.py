"""Files of this machine that go into an image, and the hash of their content.

They travel as a tar archive. Names, content and modes determine it; times and owners do not: they are the same for all,
so that the same files have the same hash on every machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shoal.client.image.ignore import Ignore
from shoal.client.tar_trees import pack_entries
from shoal.model.errors import InvalidRequest
from shoal.model.recipe import MOST_FILES_BYTES, Add

MTIME = 946_684_800
"""The start of the year 2000: zip files, and so Python's wheels, know no time before 1980."""

MOST_FILES = 200_000


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """A step: files to add. `sources`: what, and under which name below `path` (empty: what is in the directory).
    `root`: what the patterns of `ignore` are relative to; `mode`: of all files, None for their own."""

    sources: tuple[tuple[Path, str], ...]
    path: str
    root: Path
    ignore: Ignore = field(default_factory=Ignore)
    owner: str = ""
    title: str = ""
    mode: int | None = None

    def pack(self) -> Iterator[bytes]:
        """Their archive, in pieces. `InvalidRequest` (field `local`) if a file cannot be read."""
        try:
            yield from pack_entries(self._entries(), [], mtime=MTIME, mode=self.mode)
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else self.title
            raise InvalidRequest(f"local: {where}: {error.strerror or error}", field="local") from None

    def resolve(self) -> Add:
        """The step as it travels: reads all of the files, for their hash. `InvalidRequest` if there is too much."""
        hashed, size = hashlib.sha256(), 0
        for piece in self.pack():
            hashed.update(piece)
            size += len(piece)
            if size > MOST_FILES_BYTES:
                raise InvalidRequest(
                    f"local: {self.title}: there are more than {MOST_FILES_BYTES:,} bytes; leave out what is not "
                    "needed (`ignore`), or fetch it in a command",
                    field="local",
                )
        entries = sorted({name.split("/")[0] for _, name in self._entries()}) if self.owner else ()
        return Add(hashed.hexdigest(), size, self.path, self.owner, tuple(entries), self.title)

    def _entries(self) -> Iterator[tuple[Path, str]]:
        rules = self.ignore.rules()
        count = 0
        for source, name in self.sources:
            for path, member in self._below(source, name):
                if rules(_relative(path, self.root)):
                    continue
                count += 1
                if count > MOST_FILES:
                    raise InvalidRequest(
                        f"local: {self.title}: there are more than {MOST_FILES:,} files; leave out what is not needed "
                        "(`ignore`)",
                        field="local",
                    )
                yield path, member

    def _below(self, source: Path, name: str) -> Iterator[tuple[Path, str]]:
        """A file, or a directory's content, directories before what is in them."""
        if not source.is_dir():
            yield source, name or source.name
            return
        if name:
            yield source, name
        prune = not self.ignore.takes_back
        rules = self.ignore.rules()
        pending = [(source, name)]
        while pending:
            directory, below = pending.pop()
            for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
                path = Path(entry.path)
                member = f"{below}/{entry.name}" if below else entry.name
                yield path, member
                if entry.is_dir(follow_symlinks=False) and not (prune and rules(_relative(path, self.root))):
                    pending.append((path, member))


def _relative(path: Path, root: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")
