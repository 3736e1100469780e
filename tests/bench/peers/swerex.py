"""SWE-ReX: an HTTP server in every container. From the package index, beside Shoal's own packages and not among them.

Its own way to start containers installs itself into each of them over the network; here it is in the image already,
which is kinder to it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import docker

from tests.bench.peers.dockerpy import DockerPy
from tests.bench.peers.notinstallable import NotInstallable
from tests.bench.subject import MEMORY_LIMIT, WORKLOAD, Box, Subject

PACKAGES = ("swe-rex==1.4.0", "aiohttp")
PORT = 8000
INSTALL_TIMEOUT = 300.0  # seconds

T = TypeVar("T")


class SweRex(Subject):
    name = "swe-rex"
    exact = False  # it reads text only, with line ends as Python translates them

    def __init__(self, engine_address: str, image: str, packages: Path) -> None:
        """`packages`: a directory for its Python packages, kept from run to run. Raises `NotInstallable`."""
        _pip("install", "--target", str(packages), *PACKAGES)
        os.environ["SWE_REX_LOG_STREAM_LEVEL"] = "CRITICAL"  # read when it is imported
        sys.path.append(str(packages))  # behind all others: what is installed already stays what it is
        self._client = docker.DockerClient(base_url=engine_address, timeout=300)
        self._image = _build(self._client, image)
        self._docker = DockerPy(engine_address, self._image)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="swe-rex", daemon=True).start()

    def create(self, memory: int = MEMORY_LIMIT) -> SweRexBox:
        token = str(uuid.uuid4())
        command = ("python3", "-m", "swerex.server", "--host", "0.0.0.0", "--port", str(PORT), "--auth-token", token)
        container = self._docker.start(command, memory)
        container.reload()
        (network,) = container.attrs["NetworkSettings"]["Networks"].values()
        box = SweRexBox(self, container, network["IPAddress"], token)
        self.call(box.runtime.wait_until_alive(timeout=60))
        return box

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)

    def close(self) -> None:
        self._docker.close()
        self._client.images.remove(self._image, force=True)
        self._client.close()
        self._loop.call_soon_threadsafe(self._loop.stop)


class SweRexBox(Box):
    def __init__(self, subject: SweRex, container: Any, address: str, token: str) -> None:
        self._subject = subject
        self._container = container
        self._words: Any = importlib.import_module("swerex.runtime.abstract")
        remote: Any = importlib.import_module("swerex.runtime.remote")
        self.runtime = remote.RemoteRuntime(host=f"http://{address}", port=PORT, auth_token=token, timeout=60)

    def execute(self) -> None:
        done = self._subject.call(self.runtime.execute(self._words.Command(command=list(WORKLOAD))))
        if done.exit_code != 0:
            raise RuntimeError(f"{WORKLOAD} exited with {done.exit_code}")

    def write(self, path: str, data: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:  # it sends files, not bytes
            file.write(data)
            file.flush()
            self._subject.call(self.runtime.upload(self._words.UploadRequest(source_path=file.name, target_path=path)))

    def read(self, path: str) -> bytes:
        answer = self._subject.call(self.runtime.read_file(self._words.ReadFileRequest(path=path, encoding="latin-1")))
        content: str = answer.content
        return content.encode("latin-1")

    def close(self) -> None:
        self._container.remove(force=True)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    if done.returncode != 0:
        raise NotInstallable(done.stderr.strip()[-500:])


def _build(client: Any, base: str) -> str:
    """An image with it installed, out of packages that this machine's pip fetched."""
    name = f"shoal-bench/swe-rex:{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as directory:
        _pip("download", "--only-binary", ":all:", "--dest", directory, *PACKAGES)
        container = client.containers.run(base, ["sleep", "infinity"], detach=True, network_mode="none")
        try:
            archive = subprocess.run(["tar", "-c", "-C", directory, "."], capture_output=True, check=True).stdout
            container.exec_run(["mkdir", "/wheels"])
            container.put_archive("/wheels", archive)
            install = (
                "pip",
                "install",
                "--quiet",
                "--break-system-packages",
                "--no-index",
                "--find-links",
                "/wheels",
                *PACKAGES,
            )
            code, output = container.exec_run(["python3", "-m", *install])
            if code != 0:
                raise NotInstallable(output.decode(errors="replace")[-500:])
            container.commit(*name.split(":"))
        finally:
            container.remove(force=True)
    return name
