"""From no machine in a region to the first sandbox there, with pretend regions on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from shoal.model.cluster_file import ClusterFile
from tests.bench.stats import Samples, samples
from tests.cluster import free_subnet

REGIONS = ("eu", "us")

FILE = """
name: bench
provider: local
idle_timeout: 600
regions:
  eu: { types: { small: { cpus: 1, memory: 1024, max: 1 } } }
  us: { types: { small: { cpus: 1, memory: 1024, max: 1 } } }
"""


def seconds_to_first_sandbox(where: ClusterFile) -> Samples:
    """One sample for each region, the command that asks for the sandbox included. It has a cluster of its own, on the
    engine of `where`."""
    state_dir = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    file = state_dir / "cluster.yaml"
    file.write_text(FILE)
    (state_dir / "cache").symlink_to(Path(where.secret_path).parent / "cache")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHOAL_"))},
        "SHOAL_STATE_DIR": str(state_dir),
        "SHOAL_RUN_DIR": str(state_dir / "run"),
        "SHOAL_CONFIG": str(state_dir / "config.toml"),
        "SHOAL_ENGINE_ADDRESS": where.engine_address,
        "SHOAL_API__ENABLED": "false",
        "SHOAL_NETWORK__BRIDGE": "shoalbench",
        "SHOAL_NETWORK__SUBNET": str(free_subnet(where.settings["network"]["subnet"])),
    }
    try:
        _shoal(environ, "cluster", "up", str(file))
        return samples("s", [_first(environ, region) for region in REGIONS])
    finally:
        _shoal(environ, "cluster", "down")
        shutil.rmtree(state_dir)


def _first(environ: Mapping[str, str], region: str) -> float:
    start = time.perf_counter()
    _shoal(environ, "run", "--region", region, "shoal/base", "true")
    return time.perf_counter() - start


def _shoal(environ: Mapping[str, str], *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "shoal.cli.main", *arguments], env=environ, check=True, capture_output=True, timeout=200
    )
