"""Pure: which images go when they take too much of the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image. `used_at`: seconds since the epoch; `may_go`: it can be had again from elsewhere, and none uses it."""

    digest: str
    layers: tuple[str, ...]
    used_at: float
    may_go: bool


def to_evict(images: Sequence[Candidate], sizes: Mapping[str, int], bound: int, busy: Collection[str]) -> list[str]:
    """The digests of those that go, used longest ago first, until the layers that are left take at most `bound` bytes.
    `sizes`: bytes by layer. An image with a layer of its own that is `busy` stays."""
    total = sum(sizes.values())
    shared = Counter(layer for image in images for layer in image.layers)
    gone: list[str] = []
    for image in sorted(images, key=lambda image: image.used_at):
        if total <= bound:
            break
        own = [layer for layer in image.layers if shared[layer] == 1]
        if not image.may_go or any(layer in busy for layer in own):
            continue
        total -= sum(sizes.get(layer, 0) for layer in own)
        shared.subtract(image.layers)
        gone.append(image.digest)
    return gone
