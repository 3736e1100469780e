"""Fixtures: one lab per engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.engines.labs import LABS, DockerLab, Lab, RealLab, opened

ON_DOCKER = pytest.param("docker", marks=pytest.mark.engine)
DIRECT = pytest.param("oci", marks=pytest.mark.engine("oci"))
IN_GVISOR = pytest.param("runsc", marks=[pytest.mark.engine, pytest.mark.long])  # it may have to be built


@pytest.fixture(params=["fake", ON_DOCKER, DIRECT, IN_GVISOR])
async def lab(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Lab]:
    """Each engine in turn."""
    async with opened(LABS[request.param](tmp_path)) as lab:
        yield lab


@pytest.fixture(params=[ON_DOCKER, DIRECT, IN_GVISOR])
async def real_lab(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[RealLab]:
    """Each engine that starts something."""
    lab = LABS[request.param](tmp_path)
    assert isinstance(lab, RealLab)
    async with opened(lab):
        yield lab


@pytest.fixture(params=[ON_DOCKER, DIRECT])
async def kernel_lab(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[RealLab]:
    """Each engine whose containers share the machine's kernel."""
    lab = LABS[request.param](tmp_path)
    assert isinstance(lab, RealLab)
    async with opened(lab):
        yield lab


@pytest.fixture
async def docker_lab(tmp_path: Path, anyio_backend: str) -> AsyncIterator[DockerLab]:
    lab = DockerLab(tmp_path)
    async with opened(lab):
        yield lab
