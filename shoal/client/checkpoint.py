"""A sandbox's files and memory of one moment."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `Sandbox.snapshot` took, for `Sandbox.restore`. `id`: `im-…`, by which `shoal image ls` and `rm` know it,
    and from which it can be made again in another program."""

    id: str
    _taken: bool = field(default=False, repr=False, compare=False)
    """Whether `snapshot` returned it: what was made of an id may be an image without memory."""
