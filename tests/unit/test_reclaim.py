"""Which idle slots end so that others fit: nodes, waiters and idle ones in, slots out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest

from shoal.actors.controller.ledger import NodeLedger
from shoal.actors.controller.placement import Request, tiers
from shoal.actors.controller.reclaim import STALL_S, Waiting, idle_to_end
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.model.spec import SlotShape

SMALL = SlotShape(0.5, 512, 0)
LARGE = SlotShape(2.0, 2048, 0)
GPU = SlotShape(0.5, 512, 1)
IN_EU = Request(LARGE, regions=("eu",))


def room(cpu: float, memory: float | None = None, *, region: str | None = None) -> NodeRoom:
    """A node of 4 cores, 4 GiB and 1 GPU with so many cores and MiB free, by default 1 GiB for each core."""
    return NodeRoom(Amount(4.0, 4096, 1), Amount(cpu, 1024 * cpu if memory is None else memory, 1), region)


def idle(count: int, shape: SlotShape = SMALL, node: str = "a") -> list[Slot]:
    return [Slot(f"{node}-{shape.cpu:g}-{number}", shape, None, node) for number in range(count)]


@dataclass
class Case:
    about: str
    rooms: dict[str, NodeRoom]
    waiting: list[SlotShape | Request]
    idle: list[Slot]
    ends: list[str]
    held: list[Slot] = field(default_factory=list)
    stalled_s: float = 1.0


CASES = [
    Case("nobody waits", {"a": room(0.0)}, [], idle(8), []),
    Case("there is room", {"a": room(2.0)}, [LARGE], idle(4), []),
    Case("there is room for all of them", {"a": room(2.0)}, [SMALL, SMALL, GPU], idle(1, LARGE), []),
    Case("there is room, though nothing starts", {"a": room(2.0)}, [LARGE], idle(4), [], stalled_s=99),
    Case("the oldest make room, no more than it takes", {"a": room(1.0)}, [LARGE], idle(6), ["a-0.5-0", "a-0.5-1"]),
    Case("for each that waits", {"a": room(0.0)}, [LARGE, LARGE], idle(8), [f"a-0.5-{n}" for n in range(8)]),
    Case("one ended slot makes room for two", {"a": room(2.0)}, [SMALL] * 6, idle(1, LARGE), ["a-2-0"]),
    Case("one is starting: what is taken is its", {"a": room(0.0)}, [LARGE], idle(4), []),
    Case("none is starting: others hold it", {"a": room(0.0)}, [LARGE], idle(4), [
        f"a-0.5-{n}" for n in range(4)
    ], held=idle(1, LARGE)),
    Case("another program holds it", {"a": room(0.0)}, [LARGE], idle(4), [
        f"a-0.5-{n}" for n in range(4)
    ], stalled_s=STALL_S),
    Case("a worker that starts slowly is no other program", {"a": room(0.0)}, [LARGE], idle(4), [],
         stalled_s=STALL_S - 1),
    Case("not enough: none ends in vain", {"a": room(0.0)}, [LARGE], idle(2), [], held=idle(6)),
    Case("memory counts as cores do", {"a": room(2.5, 1024)}, [LARGE], idle(2), ["a-0.5-0", "a-0.5-1"],
         held=[Slot("h", SlotShape(0.5, 2048, 0), None, "a")]),
    Case("a piece on each of two nodes is no room", {"a": room(1.0), "b": room(1.0)}, [LARGE],
         [*idle(2, node="a"), *idle(2, node="b")], ["a-0.5-0", "a-0.5-1"],
         held=[*idle(4, node="a"), *idle(4, node="b")]),
    Case("the node where the fewest end", {"a": room(0.5), "b": room(1.5)}, [LARGE],
         [*idle(7, node="a"), *idle(1, node="b")], ["b-0.5-0"], held=idle(1, LARGE, "b")),
    Case("room elsewhere is none for a region", {"a": room(4.0), "b": room(1.5, region="eu")}, [IN_EU],
         [*idle(4, node="a"), *idle(1, node="b")], ["b-0.5-0"], held=idle(1, LARGE, "b")),
    Case("its own shape makes no room", {"a": room(0.0)}, [LARGE], idle(2, LARGE), []),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_who_ends(case: Case) -> None:
    requests = [each if isinstance(each, Request) else Request(each) for each in case.waiting]
    waiting = [Waiting(each, case.stalled_s) for each in requests]
    ledger = NodeLedger()
    held, idle = ([(slot.node_id, slot.shape) for slot in slots] for slots in (case.held, case.idle))
    ledger.update(case.rooms, {}, {}, held=held, idle=idle, making=(), ended=())
    assert [
        slot.id for slot in idle_to_end(waiting, partial(tiers, nodes=ledger.nodes.values()), case.idle)
    ] == case.ends
