"""One lab per test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.api.lab import Lab, lab


@pytest.fixture
async def place() -> AsyncIterator[Lab]:
    async with lab("sleep", "1000") as made:
        yield made
