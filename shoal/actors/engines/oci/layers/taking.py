"""Makes an image of what a container has changed, in steps: it is frozen for one of them only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers.config_blob import architecture_of, make_config
from shoal.actors.engines.oci.layers.drafts import Draft
from shoal.actors.engines.oci.layers.image_files import Image
from shoal.actors.engines.oci.layers.maker import Maker, check_archive
from shoal.actors.engines.oci.layers.program import LayersCommand, started


@dataclass(frozen=True, slots=True)
class Changed:
    """What a container has changed: its overlay's directory `upper`, or a descriptor of a directory, on top of the
    image of the digest `base`; None: of nothing. `exclude`: names in it that are left out; `config`: None for that of
    the base."""

    base: str | None
    upper: Path | int
    exclude: tuple[str, ...] = ()
    config: ImageConfig | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """The same, copied, and not a layer yet. `below`: the layers of the base, lowest first."""

    below: tuple[str, ...]
    config: ImageConfig
    architecture: str


@dataclass(frozen=True, slots=True)
class Taking:
    """An image that is about to be taken. `around`: keeps its layers; `draft`: where the new one is made;
    `command`: the program that makes it, which has started."""

    maker: Maker
    around: Draft
    draft: Draft
    command: LayersCommand

    def copy(self, changed: Changed) -> Copied:
        """Copies what was changed. Nothing may change there meanwhile. `ImageNotFound`: its base is not here."""
        request = {"upper": _path_of(changed.upper), "exclude": list(changed.exclude)}
        self.command.send({**request, **self.maker.where(self.draft)})
        below = None if changed.base is None else self.maker.need(changed.base)
        layers = () if below is None else below.layers
        self.around.want(layers)
        defaults = ImageConfig() if below is None else below.config
        made_for = architecture_of(None if below is None else self.maker.images.config_blob(below.digest))
        self.command.hear("copied")
        return Copied(layers, changed.config or defaults, made_for)

    def publish(self, copied: Copied, reference: str | None) -> Image:
        """Makes the image of it, once it is hashed, and names it."""
        made = self.command.hear("result")

        def config(diff_id: str) -> bytes:
            return make_config(copied.config, (*copied.below, diff_id), copied.architecture)

        return self.maker.publish_with_layer(made, self.draft, config, reference, self.around)


def _path_of(upper: Path | int) -> str:
    """For the program, which was started before; the last part is there since it follows no link."""
    return f"/proc/{os.getpid()}/fd/{upper}/." if isinstance(upper, int) else check_archive(upper)


@contextmanager
def taking(maker: Maker) -> Iterator[Taking]:
    """Gets all ready. What was not published is gone at the end."""
    with (
        maker.drafts.new() as around,
        maker.drafts.new() as draft,
        started("commit", keep=(draft.descriptor, around.descriptor)) as command,
    ):
        yield Taking(maker, around, draft, command)
