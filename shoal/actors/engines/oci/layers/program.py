"""Runs `shoal-layers`, the Go program that alone reads archives and talks to registries."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from shoal.images.binaries import layers_binary
from shoal.model.errors import DeadlineExceeded, Internal, error_from_dict

Progress = Callable[[int, int], None]
"""Called with the bytes and entries that are done."""
_LINE: Final = 32 << 20  # bytes of an answer: it may hold an image's configuration
_LONGEST_S: Final = 3600.0


def run_layers(
    command: str,
    request: dict[str, Any],
    *,
    progress: Progress | None = None,
    timeout: float = _LONGEST_S,
    keep: Sequence[int] = (),
    program: Path | None = None,
) -> dict[str, Any]:
    """Runs one command and returns its result. Blocks. Raises the error of Shoal's that it reports, or
    `DeadlineExceeded` after `timeout` seconds. `keep`: descriptors that the program inherits, so that their locks
    hold for as long as it lives. It ends with this process."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(program or layers_binary()), command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=tuple(keep),
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        try:
            answer = _converse(process, request, progress)
        finally:
            timer.cancel()
            process.kill()
            process.communicate()
        if answer is None:
            if late.is_set():
                raise DeadlineExceeded(f"the image's {command} took longer than {timeout:.0f} s")
            log.seek(0)
            said = log.read(4000).decode(errors="replace")
            raise Internal(f"shoal-layers {command} ended with {process.returncode}: {said}")
    return answer


def _converse(
    process: subprocess.Popen[bytes], request: dict[str, Any], progress: Progress | None
) -> dict[str, Any] | None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()  # and stays open: its end would end the program
    except BrokenPipeError:
        return None
    while line := process.stdout.readline(_LINE):
        said = json.loads(line)
        if "error" in said:
            raise error_from_dict(said["error"])
        if "result" in said:
            result: dict[str, Any] = said["result"]
            return result
        if progress is not None and "progress" in said:
            progress(int(said["progress"]["bytes"]), int(said["progress"]["entries"]))
    return None
