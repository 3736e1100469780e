"""Gives a program what comes in pieces, as they come, by a pipe."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ROOM: Final = 1 << 20
"""Bytes that wait in a pipe, as far as the machine's `pipe-max-size` allows."""


@contextmanager
def passed_on(pieces: Iterator[bytes]) -> Iterator[int]:
    """The end of a pipe from which a program that inherits it reads all pieces. A thread of its own takes them. Raises
    what the pieces raised rather than what the program made of an early end."""
    reader, writer = os.pipe()
    failed: list[BaseException] = []

    def pass_on() -> None:
        try:
            with os.fdopen(writer, "wb", buffering=0) as pipe:
                for piece in pieces:
                    left = memoryview(piece)
                    while left:
                        left = left[pipe.write(left) :]
        except BrokenPipeError:
            pass  # the program has ended, and says why
        except BaseException as error:  # noqa: BLE001 - it is raised where the pieces are asked for
            failed.append(error)

    thread = threading.Thread(target=pass_on, name="pass on", daemon=True)
    try:
        try:
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _ROOM)
        except OSError:
            pass  # its usual room must do
        thread.start()
        yield reader
    except Exception:
        os.close(reader)  # or a thread that writes would never end
        reader = -1
        thread.join()
        if failed:
            raise failed[0] from None
        raise
    finally:
        if reader >= 0:
            os.close(reader)
        thread.join()
    if failed:
        raise failed[0]
