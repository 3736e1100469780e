"""What a socket in the file system may be called."""

from __future__ import annotations

from typing import Final

LONGEST_PATH: Final = 107
"""Bytes of a socket's path: `sun_path` in <linux/un.h> has 108, of which one ends it."""
