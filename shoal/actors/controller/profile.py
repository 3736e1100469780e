"""Where the time of a sandbox's create went: out of the steps that its lifecycle remembers, and what its slot measured.
Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.actors.controller.phase import Phase
from shoal.actors.controller.record import SandboxRecord
from shoal.model.profile import CreateProfile, Step

_PHASES = {
    Phase.ACCEPTING: ("record", "its acceptance was written to the store; slow: the store's disk or server"),
    Phase.ACCEPTING_PLACED: ("record", "its acceptance was written to the store, with the slot that was free"),
    Phase.ACCEPTING_READY: ("record", "its acceptance was written to the store, with the container that was ready"),
    Phase.QUEUED: ("queue", "it waited for a slot: room on a node, and a Ray worker's start; a pool keeps some ready"),
    Phase.PLACING: ("place", "the slot that it got was written to the store"),
    Phase.STARTING: ("start", "its slot and its node started it"),
    Phase.CLEANING: ("clean up", "what a failed start had left was removed"),
    Phase.RETRYING: ("queue again", "it waited for another slot, as the first one failed"),
    Phase.CONFIRMING: ("confirm", "that it runs was written; its creator did not wait for that"),
}

_RUNS = (Phase.CONFIRMING, Phase.RUNNING)

_TOOK = {
    "image": "its node made sure of the image; slow: it was pulled, or fetched from another node",
    "container": "its node started the container and its network; slow: many starts at once (node.start_limit)",
    "take": "a container that was kept ready was taken",
    "node": "the call from its slot to its node",
    "agent": "its slot reached the agent in it, and told it variables, directory and user",
    "command": "its own command was started",
}


def profile_of(record: SandboxRecord) -> CreateProfile:
    """What is known of it."""
    started = record.started
    steps = [*_until_running(record)]
    took = () if started is None else started.took
    inside = [Step(name, seconds, _TOOK.get(name, "")) for name, seconds in took]
    at = next((index for index, step in enumerate(steps) if step.name == "start"), None)
    if inside and at is not None:
        rest = steps[at].seconds - sum(step.seconds for step in inside)
        call = Step("slot", max(0.0, round(rest, 6)), "calls between the controller and its slot")
        steps[at : at + 1] = [call, *inside]
    elif inside:
        steps = [*steps, *inside]
    return CreateProfile(record.id, _seconds(record), started is not None and started.warm, steps)


def _seconds(record: SandboxRecord) -> float | None:
    """How long its creator waited. A slot that was ready may have started it before it was on record."""
    if record.started is None:
        return None
    ran_at = next((at for at, _, reached in record.life.history if reached in _RUNS), 0.0)
    return max(0.0, ran_at - record.created_at, record.started.started_at - record.created_at)


def _until_running(record: SandboxRecord) -> Sequence[Step]:
    found: list[Step] = []
    before, phase = record.created_at, None
    for at, _, reached in record.life.history:
        if phase is None:  # which phase it was in first is not told: it is the one that the first step leaves
            phase = Phase.ACCEPTING
        if phase not in _PHASES:
            break  # it ran
        name, about = _PHASES[phase]
        found.append(Step(name, max(0.0, round(at - before, 6)), about))
        before, phase = at, reached
    return found
