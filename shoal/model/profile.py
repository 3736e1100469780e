"""Where the time of a create went, step by step. Plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One step, how many seconds it took, and what that means."""

    name: str
    seconds: float
    about: str


@dataclass(frozen=True, slots=True)
class CreateProfile:
    """The steps of a create one after another, as far as they are known: those in the controller are forgotten when it
    is restarted, and once the sandbox has ended. `seconds`: from its acceptance until it ran, None before it does;
    `warm`: it got a container that was kept ready."""

    sandbox_id: str
    seconds: float | None
    warm: bool
    steps: Sequence[Step]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
