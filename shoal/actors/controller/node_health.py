"""Notices nodes on which starts fail again and again. Pure.

A failed start is held against its node only if the image was not at fault: the same image has started somewhere, and
the error is none that names what the caller should change.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from shoal.model.errors import Internal, ShoalError, Unavailable

LIMIT = 5
"""Starts of different sandboxes that fail on a node, with none that succeeds between them, before it is suspect."""

_MOST_IMAGES = 10_000


@dataclass(slots=True)
class NodeHealth:
    """`suspects`: nodes where nothing new should start, and why, until somebody has taken note of them."""

    suspects: dict[str, str] = field(default_factory=dict)
    _failed: dict[str, dict[str, None]] = field(default_factory=dict)
    _good: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def started(self, node_id: str | None, image: str) -> None:
        """A sandbox of that image has started there."""
        self._failed.pop(node_id or "", None)
        self._good[image] = None
        self._good.move_to_end(image)
        if len(self._good) > _MOST_IMAGES:
            self._good.popitem(last=False)

    def failed(self, node_id: str | None, sandbox_id: str, image: str | None, error: ShoalError) -> None:
        """A start failed there. `image`: None where it did not come to that."""
        if node_id is None or not isinstance(error, Internal | Unavailable):
            return
        if image is not None and image not in self._good:
            return
        failed = self._failed.setdefault(node_id, {})
        failed[sandbox_id] = None
        if len(failed) >= LIMIT:
            del self._failed[node_id]
            self.suspects[node_id] = f"{LIMIT} starts in a row failed: {error.message}"[:200]

    def forget(self, node_id: str) -> None:
        """The node is gone, or was found in order."""
        self._failed.pop(node_id, None)
        self.suspects.pop(node_id, None)
