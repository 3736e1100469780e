"""A site: directories and settings for a cluster that a test starts with `shoal up`, beside the session's."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from tests.cluster import Machine, free_subnet


@dataclass(frozen=True)
class Site:
    """Where a cluster of its own lives. `environ`: what its commands get."""

    state_dir: Path
    environ: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "shoal.cli.main", *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def shoal(self, *arguments: str, code: int = 0) -> str:
        """Runs the command, which must exit with `code`; what it printed."""
        with self.start(*arguments) as command:
            output, errors = command.communicate(timeout=300)
        assert command.returncode == code, (arguments, command.returncode, output, errors)
        return output

    def errors(self, *arguments: str, code: int) -> str:
        """Runs the command, which must exit with `code`; what it printed on stderr."""
        with self.start(*arguments) as command:
            _, errors = command.communicate(timeout=300)
        assert command.returncode == code, (arguments, command.returncode, errors)
        return errors

    def up(self) -> ClusterFile:
        self.shoal("up")
        return self.file()

    def file(self) -> ClusterFile:
        found = cluster_file.read(self.state_dir)
        assert found is not None
        return found


def make_site(machine: Machine, engine: str | None) -> Iterator[Site]:
    """A site, taken down at the end. `engine`: the address of an engine that is there; None: it starts its own, which
    is Docker's."""
    state_dir = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    (state_dir / "cache").symlink_to((machine.state_dir / "cache").resolve())
    run_dir = state_dir / "run"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SHOAL_"))},
        **machine.environ,
        "SHOAL_STATE_DIR": str(state_dir),
        "SHOAL_RUN_DIR": str(run_dir),
        "SHOAL_CONFIG": str(state_dir / "config.toml"),
        "SHOAL_ENGINE": "auto" if engine else "docker",
        "SHOAL_ENGINE_ADDRESS": engine or f"unix://{run_dir}/engine.sock",
        "SHOAL_NETWORK__BRIDGE": f"shoalx{random.randrange(10_000)}",
        "SHOAL_NETWORK__SUBNET": str(free_subnet(machine.environ["SHOAL_NETWORK__SUBNET"])),
    }
    site = Site(state_dir, environ)
    try:
        yield site
    finally:
        site.shoal("down")
        shutil.rmtree(state_dir)
