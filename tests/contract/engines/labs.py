"""Labs for the conformance suite: an engine, containers to start, and the acts of code inside them."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from docker import APIClient

from shoal.actors.engines.contract import Container, ContainerSpec, Engine, EngineEvent, EventKind, Usage
from shoal.actors.engines.disks import Disks, mounts
from shoal.actors.engines.docker import DockerEngine
from shoal.actors.engines.fake import FakeEngine, fake_image
from shoal.actors.engines.gvisor import Gvisor
from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci import OciEngine
from shoal.actors.engines.oci.image_store import OciImageStore
from shoal.actors.engines.oci.layers import LayerStore
from shoal.actors.network import namespaces
from shoal.images import base
from shoal.images.binaries import agent_binary
from shoal.model import ids
from tests.cluster import test_cache
from tests.runsc import runsc

MiB = 1 << 20
LABEL = "shoal.test"


def engine_address() -> str | None:
    """Where the tests' engine listens: `SHOAL_TEST_ENGINE`; None: `DOCKER_HOST`, else the usual socket."""
    return os.environ.get("SHOAL_TEST_ENGINE")


def test_image() -> str:
    return os.environ.get("SHOAL_TEST_IMAGE", "shoal/base")


test_image.__test__ = False  # type: ignore[attr-defined]


def agent() -> Path:
    """What containers start: the agent, or `SHOAL_TEST_AGENT` in its place."""
    named = os.environ.get("SHOAL_TEST_AGENT")
    return Path(named) if named else agent_binary()


class Lab(ABC):
    """One engine under test. Every container of a lab carries a label of its own, so labs don't see each other's."""

    engine: Engine

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        (run_dir / "secret").write_bytes(bytes(32))  # which no relay asks for
        self.labels = {LABEL: ids.new_container_key()}
        self.image = "shoal/base"

    def spec(self, **overrides: Any) -> ContainerSpec:
        """A small container."""
        plain = ContainerSpec(
            key=ids.new_container_key(),
            image=self.image,
            agent=Path("/nowhere"),
            run_dir=self.run_dir,
            cpu=1.0,
            memory=256 * MiB,
            pids=64,
            labels=self.labels,
        )
        return replace(plain, **overrides)

    async def start(self, **overrides: Any) -> Container:
        return await self.engine.start(self.spec(**overrides))

    @abstractmethod
    async def kill(self, container: Container) -> None:
        """Its first process dies by SIGKILL."""

    @abstractmethod
    async def exhaust_memory(self, container: Container) -> None:
        """A process in it (not its first) wants more memory than the limit."""

    @abstractmethod
    async def write(self, container: Container, size: int) -> None:
        """A file of so many bytes is written to its root filesystem."""

    @abstractmethod
    async def burn(self, container: Container) -> None:
        """It uses at least 0.2 s of CPU."""

    @abstractmethod
    async def remains(self) -> list[str]:
        """The key of every container of this lab's that is left, as somebody else than the engine sees it."""


class RealLab(Lab):
    """An engine whose containers run programs. `own_kernel`: on a kernel of their own."""

    own_kernel = False

    def spec(self, **overrides: Any) -> ContainerSpec:
        return super().spec(**{"agent": agent(), **overrides})

    @abstractmethod
    async def run(self, container: Container, *argv: str, user: str = "0:0") -> tuple[int, str]:
        """Runs a program in the container, past the agent; (exit code, output)."""

    @abstractmethod
    async def id_of(self, container: Container) -> str:
        """The engine's own name of it."""

    async def kill(self, container: Container) -> None:
        os.kill(container.pid, 9)

    async def exhaust_memory(self, container: Container) -> None:
        await self.run(container, "python3", "-c", "x = bytearray(1 << 30)")

    async def write(self, container: Container, size: int) -> None:
        code, said = await self.run(container, "sh", "-c", f"head -c {size} /dev/zero > /written-$$ && sync")
        assert code == 0, said

    async def burn(self, container: Container) -> None:
        program = "import time\nwhile time.process_time() < 0.3: pass"
        assert (await self.run(container, "python3", "-c", program))[0] == 0


class DockerLab(RealLab):
    """`disks`: where containers that ask for a limit get disks of their own."""

    def __init__(self, run_dir: Path, disks: Disks | None = None) -> None:
        super().__init__(run_dir)
        self.engine = DockerEngine(engine_address(), start_limit=3, disks=disks)
        self.image = test_image()
        self.client = APIClient(base_url=engine_address() or os.environ.get("DOCKER_HOST"), version="auto")

    async def run(self, container: Container, *argv: str, user: str = "0:0") -> tuple[int, str]:
        """Runs a program in the container, by the daemon's own means; (exit code, output)."""

        def body() -> tuple[int, str]:
            started = self.client.exec_create(f"shoal-{container.key}", list(argv), user=user)
            output = self.client.exec_start(started["Id"])
            return self.client.exec_inspect(started["Id"])["ExitCode"], output.decode("utf-8", "replace")

        return await asyncio.to_thread(body)

    async def id_of(self, container: Container) -> str:
        """The daemon's own id of it."""
        found = await asyncio.to_thread(self.client.inspect_container, f"shoal-{container.key}")
        return str(found["Id"])

    async def remains(self) -> list[str]:
        label = next(f"{name}={value}" for name, value in self.labels.items())
        found = await asyncio.to_thread(self.client.containers, all=True, filters={"label": label})
        return [container["Labels"]["shoal.key"] for container in found]


CONFINED = """
import ctypes, os, platform, sys
path = '/.shoal/filter'
program = open(path, 'rb').read() if os.path.exists(path) else b''
if program:
    class Filter(ctypes.Structure):
        _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_char_p)]
    number = {'x86_64': 317, 'aarch64': 277}[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, 1, 0, ctypes.byref(Filter(len(program) // 8, program))) == 0
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f'{sys.argv[1]}: {error}')
"""
"""Takes on the filter as the agent does, for its programs, and runs one."""


class OciLab(RealLab):
    """`disks`: as for `DockerLab`. Its image is the base image's archive, unpacked once for the session."""

    gvisor: Gvisor | None = None
    runtime: tuple[str, ...] = ("runc",)

    def __init__(self, run_dir: Path, disks: Disks | None = None) -> None:
        super().__init__(run_dir)
        self.layers, self.image = base_layers()
        self.keys: set[str] = set()
        self.top = Path(tempfile.mkdtemp(prefix="shoal-oci-", dir="/tmp"))
        self.engine = self.another(disks)

    def another(self, disks: Disks | None = None) -> OciEngine:
        """An engine over the same containers, as after a restart of the node."""
        images = functools.partial(OciImageStore, self.layers)
        return OciEngine(self.top / "oci", self.layers, images, start_limit=3, disks=disks, gvisor=self.gvisor)

    def spec(self, **overrides: Any) -> ContainerSpec:
        made = super().spec(**overrides)
        self.keys.add(made.key)
        return made

    async def run(self, container: Container, *argv: str, user: str = "0:0") -> tuple[int, str]:
        command = [*self.runtime, "--root", str(self.state), "exec", "--user", user, container.key]
        command += ["python3", "-c", CONFINED, *argv]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, errors="replace")
        return done.returncode, done.stdout + done.stderr

    @property
    def state(self) -> Path:
        """Where the runtime keeps its own."""
        return self.top / "oci" / "runtime"

    async def id_of(self, container: Container) -> str:
        return container.key

    def close(self) -> None:
        shutil.rmtree(self.top)

    async def remains(self) -> list[str]:
        return await asyncio.to_thread(self._remains)

    def _remains(self) -> list[str]:
        """Of directories, mounts, groups, runtime's state, holds."""
        found = {path.name for path in self.top.glob("oci/containers/*")}
        found |= {hold.partition(".")[0] for hold in self.layers.held()} & self.keys
        found |= {path.name for path in self.top.glob("oci/runtime/*")}
        points = {entry.point for entry in mounts.table() if self.top in entry.point.parents}
        found |= {point.parent.name for point in points - {self.top / "oci" / "runtime"}}
        found |= {path.name for path in Path("/sys/fs/cgroup").glob("*/shoal/c-*") if path.name in self.keys}
        return sorted(found)


class RunscLab(OciLab):
    """Containers in gVisor, each in a network namespace that was made ahead."""

    own_kernel = True

    def __init__(self, run_dir: Path, disks: Disks | None = None) -> None:
        self.gvisor = Gvisor(runsc(), "systrap")
        self.runtime = (str(self.gvisor.program), *self.gvisor.flags())
        super().__init__(run_dir, disks)

    @property
    def state(self) -> Path:
        return self.top / "oci" / "runtime" / "runsc"

    def spec(self, **overrides: Any) -> ContainerSpec:
        made = super().spec(**{"runtime": "runsc", **overrides})
        return replace(made, namespace=self.top / "n" / made.key)

    async def burn(self, container: Container) -> None:
        # gVisor takes the time in which its tasks wait for a core of the machine's for their own.
        program = "import time\nwhile time.process_time() < 1.5: pass"
        assert (await self.run(container, "python3", "-c", program))[0] == 0

    async def start(self, **overrides: Any) -> Container:
        spec = self.spec(**overrides)
        if spec.key == Path(spec.key).name and spec.namespace is not None:
            await namespaces.make(spec.namespace)
        return await self.engine.start(spec)

    def _remains(self) -> list[str]:
        files = [path.name for path in self.state.glob("*")]
        found = [key for key in self.keys if any(key in name for name in files)]
        return sorted({*super()._remains(), *found} - {"runsc", "n"})

    def close(self) -> None:
        for pin in self.top.glob("n/*"):
            mounts.detach(pin)
        super().close()


class FakeLab(Lab):
    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.fake = FakeEngine(images={self.image: fake_image(self.image)}, delay=0.005)
        self.engine = self.fake

    async def kill(self, container: Container) -> None:
        self.fake.end(container.key, 137)

    async def exhaust_memory(self, container: Container) -> None:
        known = self.fake.containers[container.key]
        known.container = replace(known.container, out_of_memory=True)
        self.fake.push(EngineEvent(EventKind.OUT_OF_MEMORY, container.key))

    async def write(self, container: Container, size: int) -> None:
        self.fake.containers[container.key].written += size

    async def burn(self, container: Container) -> None:
        known = self.fake.containers[container.key]
        known.usage = Usage(known.usage.cpu_s + 0.3, known.usage.memory, known.usage.pids)

    async def remains(self) -> list[str]:
        return list(self.fake.containers)


def base_layers() -> tuple[LayerStore, str]:
    """A layer store with the base image, unpacked once for all sessions, and the image's name."""
    cache = test_cache()
    archive = max(cache.glob("base-*.tar"), key=lambda path: path.stat().st_mtime)
    name = f"shoal-tests/{archive.stem}:1"
    layers = LayerStore(cache / "layers")
    layers.open()
    if layers.find(name) is None:
        layers.add_root_filesystem(archive, name, ImageConfig(env=base.environment()))
        layers.settle()
    return layers, name


LABS: Mapping[str, type[Lab]] = {"fake": FakeLab, "docker": DockerLab, "oci": OciLab, "runsc": RunscLab}


@asynccontextmanager
async def opened(lab: Lab) -> AsyncIterator[Lab]:
    """The lab with its engine open. Removes what the test left, and fails the test if that was not all."""
    await lab.engine.open()
    try:
        yield lab
        for key in await lab.remains():
            await lab.engine.remove(key)
        assert await lab.remains() == []
    finally:
        await lab.engine.close()
        if isinstance(lab, OciLab):
            await asyncio.to_thread(lab.close)
        if isinstance(lab, DockerLab):
            for key in await lab.remains():
                await asyncio.to_thread(lab.client.remove_container, f"shoal-{key}", force=True, v=True)
            lab.client.close()
