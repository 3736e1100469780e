"""Fixtures of every test."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio: Ray's own loop."""
    return "asyncio"
