"""The direct engine: nothing runs but its containers. Its images and containers lie in one directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from shoal.actors.engines.catalogue import engine_named
from shoal.actors.engines.contract import Container
from shoal.actors.engines.empty_tree import empty_tree
from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci import places, runtimes, self_check
from shoal.actors.engines.oci.layers import LayerStore
from shoal.actors.engines.oci.records import Records
from shoal.actors.engines.oci.runtime_state import close_state
from shoal.cluster.local import packages
from shoal.cluster.local.checks import Check
from shoal.cluster.local.engines.contract import EngineKind, LocalEngine
from shoal.images import base
from shoal.images.binaries import agent_binary
from shoal.model import programs
from shoal.model.errors import FailedPrecondition
from shoal.model.report import Report
from shoal.model.settings import Settings

_GPUS = Path("/dev/nvidiactl")

PROGRAMS = {"runc": "runc"}


class OciLocal(LocalEngine):
    """The engine whose things lie in `root`."""

    kind = "oci"
    has_gvisor = True

    def __init__(self, root: Path, settings: Settings) -> None:
        self.address = places.address_of(root)
        self._root = root
        self._settings = settings.model_copy(update={"engine_address": self.address})
        self._records = Records(root / "containers")

    def answers(self, timeout_s: float = 3.0) -> bool:
        return runtimes.RUNC.name in runtimes.found() and self._root.is_dir()

    def has_image(self, reference: str) -> bool:
        return self._root.is_dir() and self._layers().find(reference) is not None

    def ensure_image(self, reference: str, cache: Path, report: Report) -> None:
        layers = self._layers()
        layers.open()
        if layers.find(reference) is not None:
            return
        if base.is_base(reference):
            packages.ensure(packages.BASE_IMAGE_PROGRAMS, report)
            archive = base.build(base.recipe(), cache, report)
            with report(f"Unpacking {base.REFERENCE}"):
                layers.add_root_filesystem(archive, reference, ImageConfig(env=base.environment()))
                layers.settle()
            return
        with report(f"Pulling {reference}"):
            asyncio.run(self._pull(reference))

    def load_image(self, source: Path, reference: str, *, root: bool) -> str:
        layers = self._layers()
        layers.open()
        if root:
            image = layers.add_root_filesystem(source, reference, ImageConfig())
        else:
            image = layers.add_image(source, reference)
        layers.settle()
        return image.digest

    def containers(self, labels: Mapping[str, str]) -> list[str]:
        return [record.key for record in self._records.all() if labels.items() <= record.labels.items()]

    def sweep(self, labels: Mapping[str, str], *, keep: bool) -> None:
        if self.containers(labels):
            asyncio.run(self._sweep(labels, keep))

    def processes(self) -> set[int]:
        return {record.first.pid for record in self._records.all()} - {0}

    def stop(self, *, keep: bool) -> None:
        if self._root.parent != self._settings.state_dir:
            return  # it is another cluster's
        self.sweep({}, keep=keep)
        close_state(self._root)  # nobody has, where a node was killed that had no container
        if not keep and self._root.is_dir():
            empty_tree(self._root)
            self._root.rmdir()

    async def _sweep(self, labels: Mapping[str, str], keep: bool) -> None:
        engine = engine_named(self.kind, self._settings)
        await engine.open()
        try:
            kept = {record.key for record in self._records.all() if record.keep} if keep else set()
            found = await engine.list(labels)

            async def end(container: Container) -> None:
                await (engine.stop if container.key in kept else engine.remove)(container.key)

            results = await asyncio.gather(*map(end, found), return_exceptions=True)
        finally:
            await engine.close()
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise FailedPrecondition(
                f"{len(failures)} containers in {self._root} cannot be removed: {failures[0]}; try `shoal down` again"
            )

    async def _pull(self, reference: str) -> None:
        engine = engine_named(self.kind, self._settings)
        await engine.open()
        try:
            await engine.images.get(reference)
        finally:
            await engine.close()

    def _layers(self) -> LayerStore:
        return LayerStore(self._root)


class OciKind(EngineKind):
    name = "oci"

    def problem(self, settings: Settings) -> str | None:
        if _GPUS.exists():
            return "it gives no GPUs to sandboxes, and this machine has some"
        return self_check.problem(_nearest(settings.state_dir), settings.agent or agent_binary())

    def provide(self, settings: Settings, report: Report) -> LocalEngine:
        if os.geteuid() != 0:
            raise FailedPrecondition("engine: oci needs root; run `shoal up` as root, or set engine=docker")
        packages.ensure(PROGRAMS, report)
        root = places.root_of(settings)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with report("Trying the engine"):
            problem = self_check.problem(_nearest(settings.state_dir), settings.agent or agent_binary())
        if problem is not None:
            raise FailedPrecondition(f"engine: oci does not work here: {problem}; set engine=docker")
        return OciLocal(root, settings)

    def at(self, address: str, settings: Settings) -> LocalEngine | None:
        root = places.root_at(address)
        return None if root is None else OciLocal(root, settings)

    def again(self, address: str, settings: Settings, *, own: bool) -> LocalEngine | None:
        return self.at(address, settings)

    def there(self, settings: Settings) -> LocalEngine | None:
        root = places.root_of(settings)
        return OciLocal(root, settings) if root.is_dir() else None

    def kept(self, settings: Settings) -> set[str]:
        return {record.key for record in Records(places.root_of(settings) / "containers").all() if record.keep}

    def leftover(self, settings: Settings) -> bool:
        return False

    def checks(self, settings: Settings) -> Iterator[Check]:
        for program, package in PROGRAMS.items():
            path = programs.find(program)
            remedy = "" if path else packages.install_command([package])
            yield Check(program, path is not None, path or "not on this machine", remedy)
        problem = self.problem(settings)
        yield Check(
            "engine oci",
            problem is None,
            "a container was started and removed" if problem is None else problem,
            "" if problem is None else "mend that, or set engine=docker",
        )


def _nearest(path: Path) -> Path:
    """`path`, or the nearest parent directory that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
