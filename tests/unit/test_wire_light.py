"""Whoever speaks to a sandbox must not have to load a cluster."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"ray", "docker", "pydantic", "fastapi", "sqlalchemy", "typer", "rich", "numpy"}


def test_the_wire_imports_the_standard_library_only() -> None:
    code = "import json, sys, shoal.wire.agent; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "shoal" in loaded
    assert not loaded & HEAVY
