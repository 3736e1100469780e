"""Files of another stage of a Dockerfile, or of another image, that go into an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.model.recipe import Copy, Step

if TYPE_CHECKING:
    from shoal.client.image.local_files import LocalFiles


@dataclass(frozen=True, slots=True)
class StageCopy:
    """A step: copies files of the image that `base` and `steps` make; the rest as in `Copy`."""

    base: str
    steps: tuple[Step | LocalFiles | StageCopy, ...]
    sources: tuple[str, ...]
    path: str
    into: bool = False
    owner: str = ""
    mode: str = ""
    title: str = ""

    def resolve(self, image: str) -> Copy:
        """The step as it travels. `image`: what the other stage was built as."""
        return Copy(image, self.sources, self.path, self.into, self.owner, self.mode, self.title)


def stages_in(steps: Sequence[Step | LocalFiles | StageCopy]) -> list[StageCopy]:
    """Those among the steps."""
    return [step for step in steps if isinstance(step, StageCopy)]
