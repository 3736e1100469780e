"""The verbs that are about builds of images. What was built before is told at once; the rest is the builder's work
(`shoal.cluster.builds`), which is started at the first build."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.images import Images
from shoal.actors.controller.nodes import Nodes
from shoal.actors.handles import is_gone
from shoal.actors.messages import NodeImage
from shoal.model.access import Caller
from shoal.model.builds import BaseImage, BuildInfo, BuildLog, BuildOptions, BuildState
from shoal.model.errors import BuildNotFound, FailedPrecondition, ImageNotFound, InvalidRequest, ShoalError, Unavailable
from shoal.model.ids import IMAGE
from shoal.model.images import ImageRecord
from shoal.model.recipe import Recipe, Run, Step, check_recipe, keys_of
from shoal.model.secrets import SecretUse
from shoal.model.verbs import BASE_S
from shoal.model.visibility import check_sees_environment

_LOOK_S = 20.0

StartBuilder = Callable[[], Any]
"""Starts the builder where it does not run, and returns its handle. Blocks."""


@dataclass(slots=True)
class Builds:
    """`used`: is told of an image that was found; `sealed`: encrypts a step's secret; `call`: how actors are called;
    `start_builder`: None where there can be none."""

    images: Images
    used: Callable[[ImageRecord], None]
    accounts: Accounts
    nodes: Nodes
    sealed: Callable[[SecretUse, str], Awaitable[SecretUse]]
    call: Callable[..., Awaitable[Any]]
    start_builder: StartBuilder | None
    _builder: Any = None
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def build_image(self, recipe: Recipe, environment: str, options: BuildOptions, caller: Caller) -> BuildInfo:
        """Has it built, or tells what it was built as."""
        check_sees_environment(caller, environment)
        self.accounts.quota(environment)  # or there is no such environment
        check_recipe(recipe)
        options.check()
        if not recipe.steps:
            raise InvalidRequest("steps: there are none, so there is nothing to build; use the base", field="steps")
        if not options.force:
            base = await self.base_image(recipe.base, environment, False)
            found = None if base is None else self.images.cached(environment, keys_of(base.digest, recipe.steps)[-1])
            if found is not None:
                self.used(found)
                steps = len(recipe.steps)
                return BuildInfo("", environment, BuildState.DONE, steps, steps, steps, image=found.id)
        sealed = [await self._without_values(step, environment) for step in recipe.steps]
        recipe = replace(recipe, steps=tuple(sealed))
        info: BuildInfo = await self._ask("build", recipe, environment, options, caller)
        return info

    async def _without_values(self, step: Step, environment: str) -> Step:
        """The step with its secrets sealed: the builder keeps it for a while."""
        if not isinstance(step, Run) or not step.secrets:
            return step
        return replace(step, secrets=tuple([await self.sealed(use, environment) for use in step.secrets]))

    async def builds(self, environment: str | None, caller: Caller) -> list[BuildInfo]:
        """Those that the builder knows, newest first."""
        if environment is not None:
            self.accounts.environment(environment, caller)
        if self._builder is None:
            return []  # not asked for yet: looking starts none
        found: list[BuildInfo] = await self._ask("builds", caller)
        return [each for each in found if environment in (None, each.environment)]

    async def get_build(self, build_id: str, caller: Caller) -> BuildInfo:
        """How it stands."""
        self._check_builder(build_id)
        info: BuildInfo = await self._ask("info", build_id, caller)
        return info

    async def build_log(self, build_id: str, offset: int, wait: float, caller: Caller) -> BuildLog:
        """A part of its log."""
        self._check_builder(build_id)
        log: BuildLog = await self._ask("log", build_id, offset, wait, caller)
        return log

    async def put_build_files(self, digest: str, size: int, offset: int, data: bytes, caller: Caller) -> None:
        """A piece of files."""
        await self._ask("put_files", digest, size, offset, data)

    async def base_image(self, reference: str, environment: str, pull: bool) -> BaseImage | None:
        """What a spec's image is."""
        own = self.images.find(reference, environment)
        if own is not None and own.environment == environment:
            return BaseImage(reference, own.digest, True, **own.config)
        if IMAGE.fullmatch(reference):
            raise ImageNotFound(f"base: environment {environment!r} has no image {reference}", field="base")
        return await self._on_a_node(reference, pull)

    async def _on_a_node(self, reference: str, pull: bool) -> BaseImage | None:
        """The first that has it, always in the same order: what was built on one node's image is found again."""
        nodes = sorted(self.nodes.capacities())
        found: NodeImage | None = None
        for node_id in nodes:
            found = found or await self._look(node_id, reference, False)
        if found is None and pull:
            if not nodes:
                raise Unavailable("no node answers now; try again later")
            found = await self._look(nodes[0], reference, True)
        if found is None:
            return None
        # Its entrypoint and command are not its sandboxes', as those of any image that was not built here.
        defaults = {**found.config, "entrypoint": (), "command": ()}
        return BaseImage(reference, found.digest, False, **defaults)

    async def _look(self, node_id: str, reference: str, pull: bool) -> NodeImage | None:
        try:
            found: NodeImage | None = await self.call(
                self.nodes.handle(node_id), "find_image", reference, pull, timeout_s=BASE_S if pull else _LOOK_S
            )
        except ShoalError:
            if pull:
                raise
            return None  # another may have it
        return found

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            return await self.call(await self._handle(), method, *args)
        except Unavailable as error:
            if not is_gone(error):
                raise
            self._builder = None  # somebody ended it
            return await self.call(await self._handle(), method, *args)

    def _check_builder(self, build_id: str) -> None:
        if self.start_builder is None:
            raise BuildNotFound(f"build_id: there is no build {build_id!r:.80}", field="build_id")

    async def _handle(self) -> Any:
        if self.start_builder is None:
            raise FailedPrecondition("this cluster has no builder; images cannot be built", state="no_builder")
        async with self._starting:
            if self._builder is None:
                self._builder = await asyncio.to_thread(self.start_builder)
            return self._builder
