"""Runs `shoal-layers`, the Go program that alone reads archives and talks to registries."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

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
    """Runs one command and returns its result; see `started` and `LayersCommand`."""
    with started(command, keep=keep, program=program) as process:
        return process.ask(request, progress=progress, timeout=timeout)


@contextmanager
def started(command: str, *, keep: Sequence[int] = (), program: Path | None = None) -> Iterator[LayersCommand]:
    """Starts one command, which waits for its request; at the end nothing of it runs. `keep`: descriptors that the
    program inherits, so that their locks hold for as long as it lives. It ends with this process."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(program or layers_binary()), command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=tuple(keep),
        )
        try:
            yield LayersCommand(command, process, log)
        finally:
            process.kill()
            process.communicate()


@dataclass(frozen=True, slots=True)
class LayersCommand:
    """A command that was started, for one request. `log`: what the program says beside its answer."""

    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def ask(
        self, request: dict[str, Any], *, progress: Progress | None = None, timeout: float = _LONGEST_S
    ) -> dict[str, Any]:
        """Its result: see `hear`."""
        self.send(request)
        return self.hear("result", progress=progress, timeout=timeout)

    def send(self, request: dict[str, Any]) -> None:
        """Has it begin."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()  # and stays open: its end would end the program
        except BrokenPipeError:
            pass  # it has ended: `hear` tells how

    def hear(self, what: str, *, progress: Progress | None = None, timeout: float = _LONGEST_S) -> dict[str, Any]:
        """What it says under this name, at the end `result`. Blocks. Raises the error of Shoal's that it reports, or
        `DeadlineExceeded` after `timeout` seconds."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        try:
            said = _next(self.process, what, progress)
        finally:
            timer.cancel()
        if said is not None:
            return said
        if late.is_set():
            raise DeadlineExceeded(f"the image's {self.name} took longer than {timeout:.0f} s")
        self.process.kill()
        self.process.wait()
        self.log.seek(0)
        complaint = self.log.read(4000).decode(errors="replace")
        raise Internal(f"shoal-layers {self.name} ended with {self.process.returncode}: {complaint}")


def _next(process: subprocess.Popen[bytes], what: str, progress: Progress | None) -> dict[str, Any] | None:
    """The next line of a name; None if it ends without one."""
    assert process.stdout is not None
    while line := process.stdout.readline(_LINE):
        said = json.loads(line)
        if "error" in said:
            raise error_from_dict(said["error"])
        if what in said:
            found: dict[str, Any] = said[what]
            return found
        if progress is not None and "progress" in said:
            progress(int(said["progress"]["bytes"]), int(said["progress"]["entries"]))
    return None
