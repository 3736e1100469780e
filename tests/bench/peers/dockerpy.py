"""The plain `docker` SDK on the very engine that Shoal uses: what one would write without Shoal."""

from __future__ import annotations

import io
import secrets
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import docker

from tests.bench.subject import CPU_LIMIT, MEMORY_LIMIT, PIDS_LIMIT, WORKLOAD, Box, Subject

LABEL = "shoal-bench"
IDLE = ("sleep", "infinity")


class DockerPy(Subject):
    name = "docker-py"

    def __init__(self, engine_address: str, image: str) -> None:
        # One pooled connection per caller, so that the client does not make them queue.
        self._client = docker.DockerClient(base_url=engine_address, max_pool_size=32, timeout=60)
        self._image = image
        # Shoal's sandboxes are on a bridge too. The engine's own default bridge need not exist.
        self._network = self._client.networks.create(
            f"{LABEL}-{secrets.token_hex(4)}", driver="bridge", labels={LABEL: "1"}
        )

    def create(self, memory: int = MEMORY_LIMIT) -> DockerBox:
        return DockerBox(self._client.api, self.start(IDLE, memory))

    def start(self, command: Sequence[str], memory: int) -> Any:
        """A container that runs `command`, with the limits that all subjects have."""
        return self._client.containers.run(
            self._image,
            list(command),
            detach=True,
            labels={LABEL: "1"},
            network=self._network.name,
            mem_limit=f"{memory}m",
            nano_cpus=int(CPU_LIMIT * 1e9),
            pids_limit=PIDS_LIMIT,
            security_opt=["no-new-privileges"],
        )

    def close(self) -> None:
        for container in self._client.containers.list(all=True, filters={"label": LABEL}):
            container.remove(force=True)
        self._remove_network()
        self._client.close()

    def _remove_network(self, tries: int = 20) -> None:
        """The engine lets go of removed containers' addresses a little later; where many were removed at once, it may
        count some until it is started again, and then the network stays."""
        for _ in range(tries):
            try:
                self._network.remove()
            except docker.errors.APIError:
                time.sleep(0.25)
            else:
                return


class DockerBox(Box):
    def __init__(self, api: Any, container: Any) -> None:
        self._api = api
        self._container = container

    def execute(self) -> None:
        # What `container.exec_run` does, with the handle reused: create, start and read to the end, ask for the exit
        # code.
        handle = self._api.exec_create(self._container.id, list(WORKLOAD))["Id"]
        self._api.exec_start(handle)
        code = self._api.exec_inspect(handle)["ExitCode"]
        if code != 0:
            raise RuntimeError(f"{WORKLOAD} exited with {code}")

    def write(self, path: str, data: bytes) -> None:
        directory, _, name = path.rpartition("/")
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        self._container.put_archive(directory or "/", archive.getvalue())

    def read(self, path: str) -> bytes:
        chunks, _ = self._container.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            file = tar.extractfile(tar.getmembers()[0])
            assert file is not None
            return file.read()

    def snapshot(self) -> Callable[[], object]:
        image = self._container.commit(repository=LABEL, tag=self._container.id[:12])
        return lambda: self._api.remove_image(image.id, force=True)

    def close(self) -> None:
        self._container.remove(force=True)
