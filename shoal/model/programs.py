"""Where the machine's programs are."""

from __future__ import annotations

import os
import shutil

_SYSTEM = ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def find(program: str) -> str | None:
    """The program's path, also in system directories: PATH lacks some of them for users, and after `su` for root."""
    return shutil.which(program, path=os.environ.get("PATH", "") + _SYSTEM)
