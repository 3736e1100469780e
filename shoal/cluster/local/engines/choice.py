"""Which engine a machine uses. Decided once, when a cluster or a node starts; what it is, `cluster.json` says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shoal.actors.node.records import read_records
from shoal.cluster.local.checks import Check
from shoal.cluster.local.engines.contract import EngineKind, LocalEngine
from shoal.cluster.local.engines.docker import DockerKind
from shoal.cluster.local.engines.oci import OciKind
from shoal.model.errors import InvalidRequest, ShoalError
from shoal.model.report import Report, silent
from shoal.model.settings import Settings

AUTO: Final = "auto"

KINDS: Final[tuple[EngineKind, ...]] = (OciKind(), DockerKind())
"""In the order in which `auto` prefers them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine to use. `why`: for whoever reads what `shoal doctor` says. `is_fallback`: a better one does not work
    here, which `shoal up` says."""

    kind: EngineKind
    why: str
    is_fallback: bool = False


def choose(settings: Settings) -> Choice:
    """The engine that the settings name, or for `auto` the first that can be used here. `InvalidRequest` (field
    `engine`) for an unknown name. Looks only."""
    if settings.engine != AUTO:
        return Choice(_named(settings.engine), f"the setting engine={settings.engine}")
    if settings.engine_address:
        for kind in KINDS:
            if kind.at(settings.engine_address, settings) is not None:
                return Choice(kind, f"the setting engine_address={settings.engine_address}")
    keeper = _keeper(settings)
    if keeper is not None:
        return Choice(keeper, "persistent sandboxes of this machine are in it")
    reasons: list[str] = []
    for kind in KINDS[:-1]:
        problem = kind.problem(settings)
        if problem is None:
            return Choice(kind, "; ".join([*reasons, f"{kind.name} passes its self-check"]))
        reasons.append(f"{kind.name} cannot be used here: {problem}")
    return Choice(KINDS[-1], "; ".join(reasons), is_fallback=True)


def provide(settings: Settings, report: Report = silent) -> LocalEngine:
    """The engine that is to be used, started where it does not run. Reports it where a better one does not work."""
    choice = choose(settings)
    if choice.is_fallback:
        with report(f"Taking {choice.kind.name}, which is slower: {choice.why}"):
            pass
    return choice.kind.provide(settings, report)


def _keeper(settings: Settings) -> EngineKind | None:
    """The kind that has this machine's persistent sandboxes, if there are any."""
    records = read_records(settings.state_dir / "node" / "containers")
    kept = {key for key, record in records.items() if record.kept}
    if not kept:
        return None
    return next((kind for kind in KINDS if kind.kept(settings) & kept), KINDS[-1])


def at(address: str, settings: Settings) -> LocalEngine:
    """The engine at an address, whether it answers or not. `InvalidRequest` (field `engine_address`)."""
    for kind in KINDS:
        found = kind.at(address, settings)
        if found is not None:
            return found
    raise InvalidRequest(f"engine_address: {address} is no engine's address", field="engine_address")


def reach(address: str, settings: Settings, *, own: bool) -> LocalEngine | None:
    """The engine that holds the containers, for taking them away; None if nobody answers. `own`: it was Shoal's."""
    for kind in KINDS:
        found = kind.again(address, settings, own=own)
        if found is not None:
            return found
    return None


def there(settings: Settings) -> LocalEngine | None:
    """The engine that these settings lead to, if it is there, without starting any."""
    found = choose(settings).kind.there(settings)
    if found is None and settings.engine == AUTO:
        return next((each for kind in KINDS if (each := kind.there(settings)) is not None), None)
    return found


def leftover(settings: Settings) -> bool:
    """Whether a daemon of Shoal's own runs, though no cluster file names it."""
    return any(kind.leftover(settings) for kind in KINDS)


def check(settings: Settings) -> Iterator[Check]:
    """Which engine this machine uses, why, and what that needs."""
    try:
        choice = choose(settings)
    except ShoalError as error:
        yield Check("engine choice", False, error.message, "correct the setting")
        return
    yield Check("engine choice", True, f"{choice.kind.name}: {choice.why}")
    yield from choice.kind.checks(settings)


def _named(name: str) -> EngineKind:
    for kind in KINDS:
        if kind.name == name:
            return kind
    names = ", ".join(kind.name for kind in KINDS)
    raise InvalidRequest(f"engine: there is no {name!r}, only {AUTO}, {names}", field="engine")
