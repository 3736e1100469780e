"""The console script. Importing the commands takes a while, and somebody may have thought better of it meanwhile: an
interrupt ends the process then at once and without a traceback, as nothing has begun that had to be undone."""

from __future__ import annotations

import os
import signal
import sys

_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Runs the command and ends the process with its exit code."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it was started to ignore them
    if interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from shoal.cli.main import main as run

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # just before the command began, or just after its end
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
