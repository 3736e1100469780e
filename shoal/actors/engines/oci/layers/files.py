"""Small files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Writes a file under another name and renames it. `durable`: it is on the disk when this returns."""
    made = path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}")
    try:
        with made.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Puts the names in a directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any], *, durable: bool = False) -> None:
    """Like `write_whole`, for a value."""
    write_whole(path, json.dumps(value, sort_keys=True).encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The value; None without the file, or where a crash of the machine has left it empty."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
