"""The notebooks run, in a kernel as a reader's is, and show what their files do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from tests import notebooks
from tests.notebooks import KernelManager

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def kernel(cluster: Any) -> Iterator[KernelManager]:
    with notebooks.kernel(NOTEBOOK_SANDBOXES="6") as kernel:
        yield kernel


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, kernel: KernelManager) -> None:
    done, shown = notebooks.run(path, kernel), notebooks.kinds(notebooks.read(path))
    assert not any(shown) or notebooks.kinds(done) == shown  # none: the file has its outputs cleared
    assert shoal.Sandbox.list(tags={"job": "notebook"}) == []


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)
def test_its_file_tells_nothing_of_the_machine_where_it_ran(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text) < 100_000
    assert not [word for word in ("site-packages", "raylet", str(notebooks.FOLDER), '"stderr"') if word in text]
