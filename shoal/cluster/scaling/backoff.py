"""When to try again what a cloud refused. Pure: the caller passes the time (seconds of a clock that never goes back).

A refusal closes a node type, or its whole region where the reason concerns that, for a time that doubles with each
further refusal. A launch that succeeds opens it. What runs there goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from shoal.cluster.scaling.spec import region_of

NEVER_JOINED = "never_joined"
"""The kind of an outcome that no cloud tells: a machine came and went without having been a node."""

# kind → (first pause, longest pause, whether it concerns the whole region). A spot or capacity shortage lasts minutes;
# throttling is over in seconds; the rest waits for a person, and asking rarely is enough to notice that he has acted.
_PAUSES: Mapping[str, tuple[float, float, bool]] = {
    "no_capacity": (30.0, 600.0, False),
    "throttled": (5.0, 60.0, True),
    "region_down": (15.0, 300.0, True),
    "quota": (60.0, 900.0, False),
    "unauthorized": (60.0, 900.0, True),
    "misconfigured": (60.0, 900.0, False),
    NEVER_JOINED: (60.0, 1800.0, False),
}
_UNKNOWN = (60.0, 900.0, False)
_FORGIVEN_S = 1800.0
"""After so long without a refusal the next one counts as the first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a launch went. `number`: counts up, so that each is taken in once; `kind`: that of its `CloudError`, None
    where all that were ordered were launched; `at`: by the caller's clock."""

    number: int
    type: str
    at: float
    launched: int
    kind: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """A type or region that is asked for nothing before `until`. `times`: refusals in a row."""

    until: float
    times: int
    kind: str
    message: str


Closures = Mapping[str, Closed]
"""By the name of a node type or region."""


def take_in(closures: Closures, outcomes: Iterable[Outcome]) -> Closures:
    """What is closed after these outcomes, which come in their order."""
    found = dict(closures)
    for outcome in outcomes:
        if outcome.kind is None:
            for name in (outcome.type, region_of(outcome.type)):
                if name in found and found[name].kind != NEVER_JOINED:
                    del found[name]
            continue
        first, longest, whole = _PAUSES.get(outcome.kind, _UNKNOWN)
        name = region_of(outcome.type) if whole else outcome.type
        before = found.get(name)
        if before is not None and outcome.at < before.until:
            # Of requests that were under way together: one refusal.
            found[name] = replace(before, kind=outcome.kind, message=outcome.message)
            continue
        forgiven = before is None or outcome.at - before.until > _FORGIVEN_S
        times = 1 if forgiven or before is None else before.times + 1
        pause = min(first * 2 ** min(times - 1, 16), longest)
        found[name] = Closed(outcome.at + pause, times, outcome.kind, outcome.message)
    return found


def joined(closures: Closures, types: Iterable[str]) -> Closures:
    """What is closed after machines of these types have become nodes."""
    good = {name for name in types if name in closures and closures[name].kind == NEVER_JOINED}
    return {name: each for name, each in closures.items() if name not in good}


def doubtful(closures: Closures, type_name: str, now: float) -> bool:
    """Whether machines of a type that start are none to count on: the last one never joined."""
    found = closures.get(type_name)
    return found is not None and found.kind == NEVER_JOINED and now < found.until


def closed(closures: Closures, type_name: str, now: float) -> Closed | None:
    """What keeps a node type from being launched now."""
    for name in (type_name, region_of(type_name)):
        found = closures.get(name)
        if found is not None and now < found.until:
            return found
    return None
