"""A slot's process is most of what an idle sandbox costs: what it loads is counted."""

from __future__ import annotations

import subprocess
import sys

SLOT = """
import sys
import ray
before = set(sys.modules)
sys.argv = [{argv0!r}]
import shoal.actors.sandbox.actor  # what a slot is
import shoal.actors.node.actor  # what Ray loads into it when it looks its node up
loaded = set(sys.modules) - before
heavy = [m for m in loaded if m.split(".")[0] in ("pydantic", "pydantic_settings", "docker", "requests", "typer", "rich", "sqlite3")]
print(sorted(heavy), "ray._common.pydantic_compat" in loaded)
"""


def loaded(argv0: str) -> str:
    code = SLOT.format(argv0=argv0)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_a_slot_loads_no_more_than_it_needs() -> None:
    assert loaded("/somewhere/default_worker.py") == "[] True"


def test_elsewhere_ray_stays_as_it_is() -> None:
    assert loaded("/usr/bin/anything.py") == "[] False"
