"""Fixtures of every test, and the order in which tests run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from shoal.cli.session import SILENT_RAY
from shoal.model.cluster_file import loopback_environment
from tests.cluster import (
    both_ways,
    cluster,
    clusters_engine,
    direct_engine,
    engine,
    http_client,
    leak_check,
    machine,
    needs,
)
from tests.postgres import postgres

__all__ = [
    "anyio_backend",
    "both_ways",
    "cluster",
    "clusters_engine",
    "direct_engine",
    "engine",
    "http_client",
    "leak_check",
    "machine",
    "needs",
    "postgres",
]

ROOT = Path(__file__).parent
collect_ignore = [] if os.environ.get("SHOAL_TEST_RUNTIME") == "runsc" else ["integration/test_memory.py"]
"""What holds in gVisor only; `make test-gvisor` sets the variable."""
ORDER = ("unit", "contract", "integration", "chaos")
_FOR_TESTS = ("SHOAL_TEST_", "SHOAL_SOAK_")
SETUP_S = 1200
"""For a test that is the first to need something: on a new machine programs are installed and an image is built."""


def pytest_configure(config: pytest.Config) -> None:
    """Before tests are imported. Ray reads its variables on import, and tests import it before there is a cluster.

    Whoever runs the tests may have settings of a cluster of their own in the environment, which is none of the tests'.
    Commands that run in this process would have what Ray prints in it between their own lines.
    Some tests send interrupts, and a shell's background jobs ignore them, as does all that they start.
    """
    for name in [name for name in os.environ if name.startswith("SHOAL_") and not name.startswith(_FOR_TESTS)]:
        del os.environ[name]
    os.environ.update({"RAY_AUTH_MODE": "token", **loopback_environment("127.0.0.1"), **SILENT_RAY})
    os.environ.setdefault("NOTEBOOK_SANDBOXES", "6")  # a reader's notebook has 50
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Servers that ran in this process may have left a handler of their own: uvicorn puts back what it found, in the
    order in which servers end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # of what is left by `-m` and `-k`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, and tests that start a Ray of their own before this process joins the session's cluster.

    In each file the first test that needs the engine, the cluster or PostgreSQL may wait for its installation: where
    tests run in parallel, each worker sees only some of the files.
    """
    items.sort(key=lambda item: _rank(item.path))
    seen: set[tuple[Path, str]] = set()
    for item in items:
        for need in _needs(item):
            if (item.path, need) not in seen:
                seen.add((item.path, need))
                item.add_marker(pytest.mark.timeout(SETUP_S), append=False)


def _needs(item: pytest.Item) -> list[str]:
    fixtures, parameters = getattr(item, "fixturenames", ()), getattr(item, "callspec", None)
    named = [name for name in ("cluster", "postgres") if name in fixtures]
    if parameters is not None and "postgresql" in parameters.params.values():
        named.append("postgres")
    return ["engine", *named] if item.get_closest_marker("engine") is not None else named


def _rank(path: Path) -> int:
    part = path.relative_to(ROOT).parts[0]
    return ORDER.index(part) if part in ORDER else len(ORDER)


@pytest.fixture(scope="session")
def as_root() -> None:
    """For what only root may do. Nothing is skipped: the tests are run as root, as Shoal is."""
    assert os.geteuid() == 0, "run the tests as root"


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio: Ray's own loop."""
    return "asyncio"
