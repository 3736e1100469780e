"""Has the cluster build a recipe: sends it the files that it lacks, follows the log, and goes on after a restart."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from shoal.client.image.local_files import LocalFiles
from shoal.client.image.stage_copy import StageCopy, stages_in
from shoal.model import verbs
from shoal.model.builds import LONGEST_LOOK_S, PIECE, BuildInfo, BuildOptions, BuildState
from shoal.model.errors import BuildNotFound, InvalidRequest, Unavailable, error_from_dict
from shoal.model.recipe import Add, Recipe, Step

if TYPE_CHECKING:
    from shoal.transport.contract import Transport

_RESTARTS = 3
"""How often a build is asked for again where the builder was lost amid it. Each time it goes on after the last finished
step."""

_SENDS = 3
"""How often files are sent: what the cluster keeps for a while may be gone again before it is used."""

ClientStep = Step | LocalFiles | StageCopy

Write = Callable[[str], None]
"""Takes the log, as it comes."""


async def build(
    transport: Transport,
    base: str,
    steps: Sequence[ClientStep],
    environment: str,
    options: BuildOptions,
    write: Write | None,
) -> str:
    """The id of the image that a recipe makes, built where it was not before.

    Raises `InvalidRequest`, `ImageBuildError`, `ImageNotFound` (the base), `DeadlineExceeded`, `Unavailable`.
    """
    images = []
    for stage in stages_in(steps):  # before what needs them; what two have in common is built once
        image = stage.base
        if stage.steps:
            image = await build(transport, stage.base, stage.steps, environment, options, write)
        images.append(image)
    recipe, files = await asyncio.to_thread(resolve, base, steps, images)
    restarts = sends = 0
    while True:
        info = await transport.ask(verbs.build_image, recipe, environment, options)
        if info.state is BuildState.FILES:
            if sends == _SENDS:
                raise Unavailable("the cluster asks for the same files again and again; try again later")
            sends += 1
            for digest in info.missing:
                await _send(transport, files, digest)
            continue
        try:
            info = await _follow(transport, info, write)
        except BuildNotFound:
            # The builder was started anew, and knows nothing of a build that it ran before.
            if restarts == _RESTARTS:
                raise Unavailable("the builder was lost several times amid this build; try again later") from None
            restarts += 1
            continue
        if info.error is not None:
            raise error_from_dict(dict(info.error))
        assert info.image is not None
        return info.image


def resolve(base: str, steps: Sequence[ClientStep], images: Sequence[str]) -> tuple[Recipe, Mapping[str, LocalFiles]]:
    """The recipe as it travels, and its files by digest. `images`: what other stages (`stages_in`) were built as."""
    files: dict[str, LocalFiles] = {}
    found: list[Step] = []
    built = iter(images)
    for step in steps:
        if isinstance(step, LocalFiles):
            added = step.resolve()
            files[added.digest] = step
            found.append(added)
        elif isinstance(step, StageCopy):
            found.append(step.resolve(next(built)))
        else:
            found.append(step)
    return Recipe(base, tuple(found)), files


async def _send(transport: Transport, files: Mapping[str, LocalFiles], digest: str) -> None:
    if digest not in files:
        raise Unavailable(f"the cluster asks for files {digest[:12]} that this recipe does not have")
    step = files[digest]
    added: Add = await asyncio.to_thread(step.resolve)
    if added.digest != digest:
        raise _changed(step)
    pieces = step.pack()
    held, offset, hashed = b"", 0, hashlib.sha256()
    while True:
        piece = await asyncio.to_thread(next, pieces, None)
        held += piece or b""
        while len(held) >= PIECE or (piece is None and held):
            part, held = held[:PIECE], held[PIECE:]
            hashed.update(part)
            await transport.ask(verbs.put_build_files, digest, added.size, offset, part)
            offset += len(part)
        if piece is None:
            break
    if hashed.hexdigest() != digest:
        raise _changed(step)


def _changed(step: LocalFiles) -> InvalidRequest:
    return InvalidRequest(
        f"local: {step.title}: the files change while they are read; build again when nobody writes to them",
        field="local",
    )


async def _follow(transport: Transport, info: BuildInfo, write: Write | None) -> BuildInfo:
    """Waits for the end of a build."""
    offset = 0
    while info.id:  # what was there before has no log
        part = await transport.ask(verbs.build_log, info.id, offset, LONGEST_LOOK_S)
        if part.text and write is not None:
            write(part.text)
        at_end = not part.text and part.offset == offset
        offset, info = part.offset, part.build
        if info.ended and at_end:
            break
    return info
