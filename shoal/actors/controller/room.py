"""Amounts of resources, and what of a node Ray counts as free."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.model.spec import SlotShape

EPSILON = 1e-6  # Ray counts in ten thousandths


@dataclass(frozen=True, slots=True)
class Amount:
    """Resources: cores, MiB, devices."""

    cpu: float = 0.0
    memory: float = 0.0
    gpu: float = 0.0

    def covers(self, shape: SlotShape) -> bool:
        return (
            self.cpu + EPSILON >= shape.cpu
            and self.memory + EPSILON >= shape.memory
            and self.gpu + EPSILON >= shape.gpu
        )

    def times(self, shape: SlotShape) -> int:
        """How many of a shape it covers."""
        parts = ((self.cpu, shape.cpu), (self.memory, shape.memory), (self.gpu, shape.gpu))
        return max(0, min((int((have + EPSILON) / want) for have, want in parts if want > 0), default=0))

    def plus(self, shape: SlotShape) -> Amount:
        return Amount(self.cpu + shape.cpu, self.memory + shape.memory, self.gpu + shape.gpu)

    def minus(self, shape: SlotShape) -> Amount:
        return Amount(self.cpu - shape.cpu, self.memory - shape.memory, self.gpu - shape.gpu)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.cpu + other.cpu, self.memory + other.memory, self.gpu + other.gpu)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.cpu - other.cpu, self.memory - other.memory, self.gpu - other.gpu)

    def between(self, least: Amount, most: Amount) -> Amount:
        """Each resource as near to this as the bounds allow, and never below 0."""
        return Amount(
            _between(self.cpu, least.cpu, most.cpu),
            _between(self.memory, least.memory, most.memory),
            _between(self.gpu, least.gpu, most.gpu),
        )


def _between(value: float, least: float, most: float) -> float:
    return max(0.0, least, min(value, most))


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """One node as Ray sees it: what it has, what of it is free, and where it is."""

    total: Amount
    free: Amount
    region: str | None = None
    zone: str | None = None
