"""Ray's own `ray.experimental.sandbox`: gVisor under a Ray actor.

Needs `runsc` and an `mkfs.erofs` that reads tar (erofs-utils 1.7).
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import docker

from tests.bench.peers.notinstallable import NotInstallable
from tests.bench.subject import CPU_LIMIT, MEMORY_LIMIT, WORKLOAD, Box, Subject

REQUEST = 0.125  # cores, as Shoal's sandboxes ask of Ray
START_TIMEOUT = 120.0  # seconds; its first create unpacks the image


class RayExperimental(Subject):
    name = "ray.experimental"

    def __init__(self, engine_address: str, image: str, directory: Path) -> None:
        """`directory`: where the image's archive goes. Raises `NotInstallable`. This process is connected to Ray."""
        for program, proof in (("runsc", "spec"), ("mkfs.erofs", "--tar")):
            if shutil.which(program) is None:
                raise NotInstallable(f"{self.name} needs {program}, which is missing on this machine")
            told = subprocess.run([program, "--help"], capture_output=True, text=True)
            if proof not in told.stdout + told.stderr:
                raise NotInstallable(f"{self.name} needs a newer {program}: this one knows no {proof}")
        self._archive = directory / "image.tar"
        client = docker.DockerClient(base_url=engine_address, timeout=300)
        try:
            with self._archive.open("wb") as out:
                for chunk in client.images.get(image).save():
                    out.write(chunk)
        finally:
            client.close()

    def create(self, memory: int = MEMORY_LIMIT) -> RayBox:
        sandbox: Any = importlib.import_module("ray.experimental.sandbox")
        actor = sandbox.Sandbox.options(num_cpus=REQUEST).remote(
            image=str(self._archive),
            cpu=CPU_LIMIT,
            memory=f"{memory}Mi",
            timeout_seconds=START_TIMEOUT,
            readonly=False,
        )
        return RayBox(actor)

    def close(self) -> None:
        self._archive.unlink(missing_ok=True)


class RayBox(Box):
    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._ray: Any = importlib.import_module("ray")  # only now: it reads the cluster's variables on import

    def execute(self) -> None:
        done = self._ray.get(self._actor.exec.remote(list(WORKLOAD)), timeout=START_TIMEOUT)
        if done.exit_code != 0:
            raise RuntimeError(f"{WORKLOAD} exited with {done.exit_code}: {done.stderr}")

    def write(self, path: str, data: bytes) -> None:
        self._ray.get(self._actor.write_file.remote(path, data))

    def read(self, path: str) -> bytes:
        content: bytes = self._ray.get(self._actor.read_file.remote(path))
        return content

    def close(self) -> None:
        try:
            self._ray.get(self._actor.delete.remote(), timeout=START_TIMEOUT)
        finally:
            self._ray.kill(self._actor)
