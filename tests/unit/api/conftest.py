"""The API over a cluster in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api import Api, serving


@pytest.fixture
def api() -> Iterator[Api]:
    """The API on a loopback port, as `tests.api.serving` gives it."""
    with serving() as served:
        yield served
