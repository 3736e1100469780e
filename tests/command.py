"""The `shoal` command within the test's own process, which is spared the start of another."""

from __future__ import annotations

import contextvars
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from unittest import mock

from shoal.cli.main import main
from shoal.client import cluster


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def called(*arguments: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Done:
    """What the command does and prints, with `environ` as its environment (None: the test's). Not for commands that
    read or write descriptors themselves: `run`, `exec`, `shell`, `logs`."""
    stdout, stderr = StringIO(), StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with (
        mock.patch.dict(os.environ, environ or {}, clear=environ is not None),
        mock.patch.object(sys, "argv", ["shoal", *arguments]),
        mock.patch.object(sys, "stdin", TextIOWrapper(BytesIO(stdin))),
        mock.patch.object(cluster._default, "client", cluster._default.client),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            contextvars.copy_context().run(main)  # what it sets is not set for the next
            code: int | str | None = 0
        except SystemExit as ended:
            code = ended.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert code is None or isinstance(code, int), code
    return Done(code or 0, stdout.getvalue(), stderr.getvalue())
