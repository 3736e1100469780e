"""The plan as a person reads it, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from shoal.cluster.scaling.backoff import Closed
from shoal.cluster.scaling.deciding import IDLE, Decision, Limits, Memory, Observation, Seen
from shoal.cluster.scaling.fleet import FleetState


def plan_of(
    limits: Limits,
    memory: Memory,
    seen: Observation,
    decision: Decision,
    fleet: FleetState,
    *,
    wall: float,
    monitor: int | None,
    troubles: Mapping[str, str],
) -> dict[str, Any]:
    """JSON-ready. `wall`: now in unix seconds; `monitor`: the pid of Ray's; `troubles`: what does not answer, and why.

    Each machine is `launching`, `running`, `draining` (cordoned or left), `lost` (it was a node, and is none now) or
    `ending`.
    """
    states = [(machine, _state(machine, memory)) for machine in seen.machines]
    count = Counter((machine.type, state) for machine, state in states)
    names = dict.fromkeys([*decision.most, *(machine.type for machine, _ in states)])
    types = {
        name: {
            "running": count[name, "running"],
            "launching": count[name, "launching"] + seen.launching.get(name, 0),
            "draining": count[name, "draining"],
            "wanted": decision.wanted.get(name, 0),
            "min": limits.kept(name),
            "max": kind.max if (kind := limits.type(name)) is not None else 0,
            "may_have": decision.most.get(name, 0),
            "price": limits.prices.get(name, 0.0),
        }
        for name in names
    }
    living = Counter(machine.type for machine, state in states if state != "ending")
    living.update(seen.launching)
    return {
        "at": wall,
        "monitor": monitor,
        "types": types,
        "machines": [
            {
                "id": machine.id,
                "type": machine.type,
                "state": state,
                "node": machine.node_id,
                "sandboxes": machine.sandboxes,
                "why": machine.cordoned,
            }
            for machine, state in states
        ],
        "closed": {
            name: _closed(shut, seen.now, wall) for name, shut in memory.closures.items() if shut.until > seen.now
        },
        "unmet": [
            {"cpu": each.cpu, "memory": each.memory, "gpu": each.gpu, "regions": list(each.regions), "count": left,
             "why": why}
            for each, left, why in decision.unmet
        ],
        "waiting": None if seen.waiting is None else sum(each.count for each in seen.waiting),
        "cost_per_hour": sum(limits.prices.get(name, 0.0) * number for name, number in living.items()),
        "max_cost_per_hour": limits.max_cost,
        "regions_failed": {name: state.failed for name, state in fleet.regions.items() if state.failed is not None},
        "troubles": dict(troubles),
    }  # fmt: skip


def told(plan: Mapping[str, Any], now: float) -> Iterator[str]:
    """The remarks below the table. `now`: in unix seconds."""
    age = now - plan["at"]
    if age > _STALE_S:
        yield f"! This plan is {age:.0f} s old: the scaler does not run; `shoal up` repairs it"
    if plan["waiting"] is None:
        yield "! The controller does not answer: nothing is taken away meanwhile"
    elif plan["waiting"]:
        yield f"Waiting for room: {plan['waiting']} sandboxes"
    for each in plan["unmet"]:
        where = f" in {', '.join(each['regions'])}" if each["regions"] else ""
        gpus = f", {each['gpu']} GPUs" if each["gpu"] else ""
        size = f"{each['cpu']:g} CPU, {each['memory']} MiB{gpus}"
        yield f"! {each['count']} of {size}{where} get no machine: {each['why']}"
    for name, shut in plan["closed"].items():
        left = max(0.0, shut["until"] - now)
        yield f"! {name} is left alone for {left:.0f} s: {shut['kind']} {shut['message']}".rstrip()
    for name, why in plan["regions_failed"].items():
        yield f"! {name} cannot be listed; its machines are shown as last seen: {why}"
    for what, why in plan["troubles"].items():
        yield f"! {what}: {why}"
    if plan["monitor"] is None:
        yield "! Ray's monitor does not run; it is being started"
    cost, most = plan["cost_per_hour"], plan["max_cost_per_hour"]
    if cost or most is not None:
        yield f"Cost: {cost:.2f} an hour" + (f" of at most {most:g}" if most is not None else "")


_STALE_S = 20.0


def _state(machine: Seen, memory: Memory) -> str:
    if machine.ending:
        return "ending"
    if machine.node_id is None:
        return "lost" if machine.id in memory.joined else "launching"
    leaving = machine.node_id in memory.left or machine.node_id in memory.drained or machine.cordoned == IDLE
    return "draining" if leaving else "running"


def _closed(shut: Closed, now: float, wall: float) -> dict[str, Any]:
    return {"until": wall + shut.until - now, "times": shut.times, "kind": shut.kind, "message": shut.message}
