"""A slot's process is most of what an idle sandbox costs: what it loads is counted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SLOT = """
import json, sys
import ray
before = set(sys.modules)
sys.argv = [{argv0!r}]
import shoal.actors.sandbox.actor  # what a slot is
import shoal.actors.node.actor  # what Ray loads into it when it looks its node up
heavy = {{"pydantic", "pydantic_settings", "docker", "requests", "typer", "rich", "sqlite3"}}
loaded = [name for name in set(sys.modules) - before if name in heavy and sys.modules[name] is not None]
try:
    import pydantic
    has_pydantic = True
except ModuleNotFoundError:
    has_pydantic = False
print(json.dumps([sorted(loaded), has_pydantic]))
"""


@pytest.mark.parametrize(("argv0", "has_pydantic"), [("/x/default_worker.py", False), ("/usr/bin/anything.py", True)])
def test_a_slot_loads_no_more_than_it_needs(argv0: str, has_pydantic: bool) -> None:
    code = SLOT.format(argv0=argv0)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [[], has_pydantic]
