"""Trees of an agent in memory as tar archives."""

from __future__ import annotations

import io
import tarfile
from pathlib import PurePosixPath

from shoal.model.errors import InvalidRequest


def packed(top: str, files: dict[str, bytes], directories: set[str]) -> bytes:
    """A directory, its names relative to it; or one file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path in sorted({*files, *directories} - {"/", top if top in directories else ""}):
            if not PurePosixPath(path).is_relative_to(top):
                continue
            name = str(PurePosixPath(path).relative_to(top)) if path != top else PurePosixPath(path).name
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if path in directories else tarfile.REGTYPE
            member.size = len(files.get(path, b""))
            archive.addfile(member, io.BytesIO(files.get(path, b"")))
    return made.getvalue()


def unpacked(top: str, data: bytes) -> dict[str, bytes | None]:
    """What an archive holds, by absolute path; None for a directory.

    `InvalidRequest` where it is none, or leads out of `top`.
    """
    found: dict[str, bytes | None] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                if ".." in PurePosixPath(member.name).parts or member.name.startswith("/"):
                    raise InvalidRequest(f"chunks: the member {member.name!r} leads out of the directory")
                content = archive.extractfile(member) if member.isreg() else None
                found[str(PurePosixPath(top, member.name))] = None if content is None else content.read()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InvalidRequest(f"chunks: this is no tar archive: {error}", field="chunks") from None
    return found
