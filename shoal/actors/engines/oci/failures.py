"""Maps what the kernel refuses to Shoal's errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.model.errors import Internal, QuotaExceeded


@contextmanager
def typed(doing: str) -> Iterator[None]:
    """What the kernel refuses as one of Shoal's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuotaExceeded(
                f"could not {doing}: the machine's disk is full: {error}; remove what is not needed there"
            ) from error
        raise Internal(f"could not {doing}: {error}") from error
