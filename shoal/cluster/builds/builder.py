"""All builds: those that ask for the same join one, and the last ones that ended are kept."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace

from shoal.client.cluster import Client
from shoal.cluster.builds.build import Build, Layers, by_content, find_cached
from shoal.cluster.builds.files import FileStore
from shoal.model import tasks, verbs
from shoal.model.access import Caller, caller
from shoal.model.builds import LONGEST_LOOK_S, BaseImage, BuildInfo, BuildLog, BuildOptions, BuildState
from shoal.model.errors import BuildNotFound
from shoal.model.recipe import Add, Copy, Recipe, keys_of, step_to_dict
from shoal.model.visibility import sees

_KEPT = 64
"""Builds that have ended, whose logs are kept."""


class Builder:
    """Builds images on behalf of callers."""

    def __init__(self, client: Client, files: FileStore) -> None:
        self._client = client
        self._files = files
        self._builds: dict[str, Build] = {}
        self._running: dict[str, Build] = {}
        self._layers: Layers = {}

    async def build(self, recipe: Recipe, environment: str, options: BuildOptions, by: Caller) -> BuildInfo:
        """Starts a build, or joins the one that there is; tells which files are missing for it."""
        same = _hash_of(recipe, environment, options)
        if (running := self._running.get(same)) is not None:
            return running.info
        missing = await self._missing(recipe, environment, options)
        if missing:
            return BuildInfo("", environment, BuildState.FILES, len(recipe.steps), missing=missing)
        if (running := self._running.get(same)) is not None:  # another came first
            return running.info
        build = Build(_new_id(), environment, recipe, options, self._client, self._files, self._layers)
        self._running[same] = self._builds[build.id] = build
        token = caller.set(by)
        try:
            task = tasks.shared(build.run(), "build image")  # which runs on the caller's behalf
        finally:
            caller.reset(token)
        task.add_done_callback(lambda _: self._ended(same))
        return build.info

    def builds(self, by: Caller) -> list[BuildInfo]:
        """Those that the caller may see, newest first."""
        return [build.info for build in reversed(self._builds.values()) if sees(by, build.environment)]

    def info(self, build_id: str, by: Caller) -> BuildInfo:
        """How it stands."""
        return self._known(build_id, by).info

    async def log(self, build_id: str, offset: int, wait: float, by: Caller) -> BuildLog:
        """Its log from an offset on."""
        build = self._known(build_id, by)
        await build.log.wait(offset, min(max(0.0, wait), LONGEST_LOOK_S))
        info = build.info  # before the text: one that has ended has written all
        text, offset = build.log.read(offset)
        return BuildLog(text, offset, info)

    async def put_files(self, digest: str, size: int, offset: int, data: bytes) -> None:
        """Keeps a piece of files."""
        await asyncio.to_thread(self._files.put, digest, size, offset, data)

    def _known(self, build_id: str, by: Caller) -> Build:
        build = self._builds.get(build_id)
        if build is None or not sees(by, build.environment):
            raise BuildNotFound(f"build_id: there is no build {build_id!r:.80}; ask for it again", field="build_id")
        return build

    def _ended(self, same: str) -> None:
        del self._running[same]
        ended = [build for build in self._builds.values() if build.info.ended]
        for build in ended[:-_KEPT]:
            del self._builds[build.id]

    async def _missing(self, recipe: Recipe, environment: str, options: BuildOptions) -> tuple[str, ...]:
        """The digests of files that are needed and not here."""
        absent = {step.digest for step in recipe.steps if isinstance(step, Add) and not self._files.path(step.digest)}
        if not absent:
            return ()
        base = await self._base(recipe.base, environment)
        copied = {step.image for step in recipe.steps if isinstance(step, Copy)}
        sources = {image: await self._base(image, environment) for image in copied}
        keys = keys_of(base.digest, by_content(recipe.steps, sources))
        done, _ = await find_cached(self._client, environment, keys, options.force)
        return _in_order([step.digest for step in recipe.steps[done:] if isinstance(step, Add)], absent)

    async def _base(self, image: str, environment: str) -> BaseImage:
        found = await self._client.transport.ask(verbs.base_image, image, environment, True)
        assert found is not None
        return found


def _in_order(digests: Sequence[str], wanted: set[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in digests if each in wanted))


def _hash_of(recipe: Recipe, environment: str, options: BuildOptions) -> str:
    """What is equal for those who can share one build: how it is built does not matter, what is built does."""
    plain = [step_to_dict(replace(step, title="")) for step in recipe.steps]
    text = json.dumps([recipe.base, plain, environment, options.force], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _new_id() -> str:
    return f"bd-{base64.b32encode(secrets.token_bytes(10)).decode().lower()}"
