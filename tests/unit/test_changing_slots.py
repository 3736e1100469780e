"""The sandboxes that come and go on a node, and those that are about to."""

from __future__ import annotations

from shoal.actors.controller.changing_slots import SHORT_S, ChangingSlots
from shoal.actors.controller.ledger import NodeLedger, NodeView, starts_at_once
from shoal.actors.controller.room import Amount
from shoal.actors.controller.slot import Slot
from shoal.model.spec import SlotShape

SHAPE = SlotShape(0.1, 64)
ROOM = Amount(4, 4096, 0)


def node_with_slots() -> tuple[NodeView, ChangingSlots, list[Slot]]:
    """One core, and as many slots as may be at work there, and one more."""
    node = NodeView("a", ROOM, ROOM)
    changing = ChangingSlots(NodeLedger({"a": node}))
    return node, changing, [Slot(f"s{n}", SHAPE, None, "a") for n in range(starts_at_once(1) + 1)]


def test_those_that_just_came_count_while_such_go_soon() -> None:
    node, changing, (first, *others) = node_with_slots()
    for slot in others:
        assert not node.busy
        changing.begin(slot, 10.0)
    assert node.busy
    for slot in others:
        changing.came(slot, 10.1)
        changing.came(slot, 10.1)
    assert not node.busy  # they may run for hours
    changing.begin(first, 10.1)
    changing.came(first, 10.2)
    changing.begin(first, 10.5)
    changing.finish(first)
    assert node.busy
    changing.expire(10.5 + SHORT_S)  # none has gone since: these are no short ones
    assert not node.busy
    assert (node.changing, node.young) == (0, 0)


def test_what_goes_after_long_says_nothing_of_those_that_come() -> None:
    node, changing, (first, *others) = node_with_slots()
    changing.begin(first, 10.0)
    changing.came(first, 10.1)
    for slot in others:
        changing.begin(slot, 11.0)
        changing.came(slot, 11.0)
    changing.begin(first, 10.1 + SHORT_S)
    changing.finish(first)
    assert not node.busy
    assert node.young == len(others)
    for slot in others:
        changing.finish(slot)
    assert node.young == 0
