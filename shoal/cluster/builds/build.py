"""One build: finds which steps were done before, and does the others in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from shoal.client.cluster import Client
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.sandbox import Sandbox
from shoal.client.secrets import Secret
from shoal.cluster.builds.files import FileStore
from shoal.cluster.builds.log import Log
from shoal.cluster.builds.steps import StepRunner, message_of
from shoal.model import tasks, verbs
from shoal.model.builds import BaseImage, BuildInfo, BuildOptions, BuildState
from shoal.model.errors import DeadlineExceeded, Internal, ShoalError, Unavailable
from shoal.model.images import ImageRecord
from shoal.model.recipe import Add, Copy, ImageDefaults, Recipe, Run, Step, changed, is_layer, keys_of, title_of
from shoal.model.secrets import SecretUse

LEASE_S = 30.0
"""The owner lease of the sandboxes in which steps run: so long they outlive a builder that was killed."""

_MARGIN_S = 120.0
"""Seconds that such a sandbox outlives the build's timeout, to be saved."""

Layers = dict[tuple[str, str], "asyncio.Task[ImageRecord]"]
"""The steps that are being made, by environment and key: builds that have a step in common make it once."""


@dataclass(slots=True)
class Build:
    """A build that runs, or has ended. `layers`: shared by all builds."""

    id: str
    environment: str
    recipe: Recipe
    options: BuildOptions
    client: Client
    files: FileStore
    layers: Layers
    log: Log = field(default_factory=Log)
    clock: Callable[[], float] = time.time
    info: BuildInfo = field(init=False)
    _end: float = field(init=False)
    _tail: ImageRecord | None = None
    _sources: dict[str, BaseImage] = field(default_factory=dict)
    """The images of which steps copy files."""

    def __post_init__(self) -> None:
        steps = len(self.recipe.steps)
        self.info = BuildInfo(self.id, self.environment, BuildState.RUNNING, steps, started_at=self.clock())
        self._end = time.monotonic() + self.options.timeout

    async def run(self) -> None:
        """Builds to the end; what came of it is in `info`."""
        try:
            async with asyncio.timeout(self.options.timeout):
                image = await self._run()
        except TimeoutError:
            error: ShoalError = DeadlineExceeded(
                f"the build took longer than {self.options.timeout:g} s, and was ended at step {self.info.step + 1} of "
                f"{self.info.steps}; allow more with timeout=",
                field="timeout",
            )
            self._ended(BuildState.FAILED, error=error)
        except ShoalError as error:
            self._ended(BuildState.FAILED, error=error)
        except Exception as error:  # a defect: whoever follows the build must be told
            self._ended(BuildState.FAILED, error=Internal(f"the build failed: {error!r}"))
            raise
        else:
            self._ended(BuildState.DONE, image=image)

    def _ended(self, state: BuildState, image: str | None = None, error: ShoalError | None = None) -> None:
        told = None if error is None else error.to_dict()
        self.info = replace(self.info, state=state, image=image, error=told, ended_at=self.clock())
        if error is not None:
            self.log.write(f"Failed: {message_of(error)}\n")
        else:
            self.log.write(f"Built {image} in {self.clock() - self.info.started_at:.1f} s\n")
        self.log.end()

    async def _run(self) -> str:
        steps = self.recipe.steps
        base = await self._ask_base(self.recipe.base)
        self._sources = {step.image: await self._ask_base(step.image) for step in steps if isinstance(step, Copy)}
        keys = keys_of(base.digest, by_content(steps, self._sources))
        done, image = await find_cached(self.client, self.environment, keys, self.options.force)
        defaults = ImageDefaults(entrypoint=base.entrypoint, command=base.command) if base.ours else ImageDefaults()
        for step in steps[:done]:
            defaults = changed(defaults, step, base.env)
        self.info = replace(self.info, step=done, cached=done)
        if done:
            self.log.write(f"Steps 1 to {done} of {len(steps)} are there already\n")
        while done < len(steps):
            step = steps[done]
            self.log.write(f"Step {done + 1} of {len(steps)}: {title_of(step)}\n")
            before, defaults = defaults, changed(defaults, step, base.env)
            if is_layer(step):
                image = await self._shared(keys[done], partial(self._layer, base, image, before, done, keys))
            elif done + 1 == len(steps):  # nothing but defaults has changed since the last layer
                image = self._tail or await self._shared(
                    keys[-1], partial(self._save_as, base, image, before, defaults, keys[-1])
                )
            done += 1
            self.info = replace(self.info, step=done)
        assert image is not None
        return image.id

    async def _ask_base(self, image: str) -> BaseImage:
        found = await self.client.transport.ask(verbs.base_image, image, self.environment, False)
        if found is None:
            self.log.write(f"Pulling {image}\n")
            found = await self.client.transport.ask(verbs.base_image, image, self.environment, True)
        assert found is not None
        return found

    async def _shared(self, key: str, make: Callable[[], Coroutine[Any, Any, ImageRecord]]) -> ImageRecord:
        """The image of a step, made here or by the build that makes it already."""
        mine = (self.environment, key)
        while (other := self.layers.get(mine)) is not None and not other.done():
            self.log.write("It is being made by another build, which this one waits for\n")
            await asyncio.wait([other])
            if not other.cancelled() and other.exception() is None:
                return other.result()
            # That build's own failure, by its own timeout and limits.
        task = self.layers[mine] = tasks.shared(make(), "build step")
        task.add_done_callback(partial(self._forget, mine))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()  # the build's time is over
            raise

    def _forget(self, key: tuple[str, str], task: asyncio.Task[ImageRecord]) -> None:
        if self.layers.get(key) is task:
            del self.layers[key]

    # A step

    async def _layer(
        self, base: BaseImage, image: ImageRecord | None, defaults: ImageDefaults, at: int, keys: tuple[str, ...]
    ) -> ImageRecord:
        step, rest = self.recipe.steps[at], self.recipe.steps[at + 1 :]
        assert isinstance(step, Run | Add | Copy)
        archive = None
        if isinstance(step, Add):
            archive = self.files.path(step.digest)
            if archive is None:
                raise Unavailable(f"step {at + 1}: its files are not kept any more; build again")
        secrets = step.secrets if isinstance(step, Run) else ()
        async with self._sandbox(base, image, defaults, secrets) as sandbox:
            left = max(1.0, self._end - time.monotonic())
            agent = RetryingAgent(self.client.transport, sandbox.id)
            runner = StepRunner(sandbox, agent, self.log, at + 1, title_of(step), left)
            if isinstance(step, Copy):
                async with self._sandbox(self._sources[step.image], None, ImageDefaults()) as source:
                    await runner.copy(step, RetryingAgent(self.client.transport, source.id))
            else:
                await runner.run(step, defaults, archive)
            made = await self._save(sandbox, base, defaults, keys[at])
            if rest and not any(map(is_layer, rest)):
                # The last layer: the same files with the defaults of the steps after it, while they are at hand.
                for each in rest:
                    defaults = changed(defaults, each, base.env)
                self._tail = await self._save(sandbox, base, defaults, keys[-1])
            return made

    async def _save_as(
        self, base: BaseImage, image: ImageRecord | None, before: ImageDefaults, defaults: ImageDefaults, key: str
    ) -> ImageRecord:
        """The same files with other defaults."""
        async with self._sandbox(base, image, before) as sandbox:
            return await self._save(sandbox, base, defaults, key)

    @asynccontextmanager
    async def _sandbox(
        self,
        base: BaseImage,
        image: ImageRecord | None,
        defaults: ImageDefaults,
        secrets: Sequence[SecretUse] = (),
    ) -> AsyncIterator[Sandbox]:
        """A sandbox of the image of the step before. By digest, so that it runs no command of the image's own."""
        options = self.options
        left = max(1.0, self._end - time.monotonic())
        usual = await self.client.defaults.aio()
        sandbox = await Sandbox.create.aio(
            image=image.digest if image is not None else base.digest if base.ours else base.reference,
            environment=self.environment,
            # What is asked for is the limit: a build waits for no more room than any sandbox.
            cpu=None if options.cpu is None else (min(usual.cpu_request, options.cpu), options.cpu),
            memory=None if options.memory is None else (min(usual.memory_request, options.memory), options.memory),
            disk=options.disk,
            network="none" if options.network == "none" else "default",
            workdir=defaults.workdir or None,
            secrets=[Secret(use) for use in secrets],
            timeout=left + _MARGIN_S,
            owner_lease=LEASE_S,
            tags={"shoal.build": self.id},
            deadline=min(left, 300.0),
            client=self.client,
        )
        try:
            yield sandbox
        finally:
            await asyncio.shield(tasks.shared(self._end_sandbox(sandbox), "end build sandbox"))

    async def _end_sandbox(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.terminate.aio()
        except ShoalError:
            pass  # its owner lease ends it
        self.client.leases.drop(sandbox.id)

    async def _save(self, sandbox: Sandbox, base: BaseImage, defaults: ImageDefaults, key: str) -> ImageRecord:
        return await self.client.transport.ask(
            verbs.save_build, sandbox.id, key, config_of(base, defaults), replace=self.options.force
        )


def by_content(steps: Sequence[Step], sources: Mapping[str, BaseImage]) -> tuple[Step, ...]:
    """The steps with the digests of the images that they copy of, in place of their names."""
    return tuple(replace(step, image=sources[step.image].digest) if isinstance(step, Copy) else step for step in steps)


async def find_cached(
    client: Client, environment: str, keys: tuple[str, ...], force: bool
) -> tuple[int, ImageRecord | None]:
    """How many steps were done before, and the image that the last of these made."""
    for done in range(0 if force else len(keys), 0, -1):
        found = await client.transport.ask(verbs.find_image, environment, keys[done - 1])
        if found is not None:
            return done, found
    return 0, None


def config_of(base: BaseImage, defaults: ImageDefaults) -> Mapping[str, Any]:
    """The defaults of an image, as its record has them: the base's own, and over them what the recipe says. The
    entrypoint and command of a base that was not built here are left out: nearly always they are a shell."""
    return asdict(
        ImageDefaults(
            env={**base.env, **defaults.env},
            workdir=defaults.workdir or base.workdir,
            user=defaults.user or base.user,
            entrypoint=defaults.entrypoint,
            command=defaults.command,
            labels={**base.labels, **defaults.labels},
        )
    )
