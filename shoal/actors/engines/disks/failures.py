"""Maps what mounting a disk may raise to Shoal's errors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.model.errors import Unavailable


@contextmanager
def disk_errors(key: str) -> Iterator[None]:
    """A disk that cannot be mounted is `Unavailable`, with the container's key."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(
            f"could not mount the disk of container {key}: {error}; run `shoal doctor` to see what is missing"
        ) from error
