"""Builds as the controller answers them: what was built is told at once, the rest is the builder's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoal.actors.messages import NodeImage
from shoal.model.access import INSIDE, Caller, Scope
from shoal.model.builds import BuildInfo, BuildOptions, BuildState
from shoal.model.errors import BuildNotFound, EnvironmentNotFound, FailedPrecondition, ImageNotFound, InvalidRequest
from shoal.model.recipe import Recipe, Run, keys_of
from tests.unit.builders import spec
from tests.unit.controller_world import Controller, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

RECIPE = Recipe("base", (Run(("true",)),))
DIGEST = "sha256:" + "1" * 64
CONFIG = {"env": {}, "user": "", "workdir": "/", "entrypoint": ["python3"], "command": ["-m", "app"], "labels": {}}


class Peers:
    """A node and a builder, as the controller calls them."""

    def __init__(self, otherwise: Callable[..., Any]) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._otherwise = otherwise

    async def __call__(self, handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        self.calls.append((method, args[0]))
        if method == "builds":
            return [BuildInfo(f"bd-{where}", where, BuildState.RUNNING, 1) for where in ("dev", "main")]
        if method == "find_image":
            return NodeImage(DIGEST, 1, CONFIG) if args[0] == "base" or args[1] else None
        if method == "build":
            return BuildInfo("bd-1", args[1], BuildState.RUNNING, 1)
        return await self._otherwise(handle, method, *args, timeout_s=timeout_s)


async def with_peers(builder: bool = True) -> tuple[Controller, Peers]:
    controller = await World().controller()
    builds = controller.parts.builds
    peers = builds.call = Peers(builds.call)  # type: ignore[method-assign]
    builds.start_builder = (lambda: "builder") if builder else None
    return controller, peers


async def built(controller: Controller, key: str) -> Any:
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 20, True, INSIDE))
    return await controller.begin(controller.parts.snapshots.save_build(info.id, key, CONFIG, None, None, False))


async def test_what_was_built_is_told_without_the_builder() -> None:
    controller, peers = await with_peers()
    builds = controller.parts.builds
    asked = RECIPE, "main", BuildOptions()
    assert (await builds.build_image(*asked, INSIDE)).id == "bd-1"
    image = await built(controller, keys_of(DIGEST, RECIPE.steps)[-1])
    peers.calls.clear()
    info = await builds.build_image(*asked, INSIDE)
    assert (info.state, info.image, info.cached, info.id) == (BuildState.DONE, image.id, 1, "")
    assert [method for method, _ in peers.calls] == ["find_image"]
    assert (await builds.build_image(RECIPE, "main", BuildOptions(force=True), INSIDE)).id == "bd-1"


async def test_looking_for_builds_starts_no_builder() -> None:
    controller, peers = await with_peers()
    builds = controller.parts.builds
    assert await builds.builds(None, INSIDE) == []
    assert peers.calls == []
    await builds.build_image(RECIPE, "main", BuildOptions(), INSIDE)
    assert [each.id for each in await builds.builds("main", INSIDE)] == ["bd-main"]
    assert [each.id for each in await builds.builds(None, INSIDE)] == ["bd-dev", "bd-main"]
    with pytest.raises(EnvironmentNotFound):
        await builds.builds("none", INSIDE)


async def test_a_base_is_an_image_of_the_cluster_or_of_a_node() -> None:
    controller, _ = await with_peers()
    builds = controller.parts.builds
    image = await built(controller, "key")
    own = await builds.base_image(image.id, "main", False)
    assert own is not None
    assert (own.ours, own.digest, own.command) == (True, image.digest, ["-m", "app"])
    found = await builds.base_image("base", "main", False)
    assert found is not None
    assert (found.ours, found.digest, found.command) == (False, DIGEST, ()), "a registry's command is no sandbox's"
    assert await builds.base_image("elsewhere", "main", False) is None
    assert await builds.base_image("elsewhere", "main", True) is not None
    with pytest.raises(ImageNotFound):
        await builds.base_image("im-none", "main", True)


async def test_an_image_gives_its_command_to_sandboxes_that_have_none() -> None:
    controller, _ = await with_peers()
    image = await built(controller, "key")
    use = controller.parts.admission.images
    assert use.with_command(spec(image=image.id)).command == ("python3", "-m", "app")
    assert use.with_command(spec(image=image.id, command=("true",))).command == ("true",)
    for other in (image.digest, "python:3.12"):
        assert use.with_command(spec(image=other)).command == ()
    assert use.with_command(spec(image=image.id, environment="dev")).command == ()


async def test_what_cannot_be_is_refused_at_once() -> None:
    controller, peers = await with_peers(builder=False)
    builds, options = controller.parts.builds, BuildOptions()
    with pytest.raises(EnvironmentNotFound):
        await builds.build_image(RECIPE, "main", options, Caller("tk-1", "dev", Scope.RUN))
    for recipe, asked in ((Recipe("base"), options), (RECIPE, BuildOptions(timeout=-1)), (Recipe(""), options)):
        with pytest.raises(InvalidRequest):
            await builds.build_image(recipe, "main", asked, INSIDE)
    assert peers.calls == []
    with pytest.raises(FailedPrecondition):
        await builds.build_image(RECIPE, "main", options, INSIDE)
    with pytest.raises(BuildNotFound):
        await builds.get_build("bd-1", INSIDE)
