"""One sandbox as the registry holds it, and its form on disk."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cache
from operator import attrgetter
from typing import Any

from shoal.actors.controller.phase import ENDED, RESTING, STATE, Phase
from shoal.actors.controller.phase_table import Lifecycle
from shoal.actors.messages import End, SandboxStarted
from shoal.model.access import INSIDE
from shoal.model.errors import ShoalError
from shoal.model.info import MemoryState, SandboxInfo
from shoal.model.mounts import MountSpec, from_rows, to_rows
from shoal.model.options import default_of
from shoal.model.secrets import SecretUse
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.states import FAILURES, TERMINAL, Reason, State

_COMMAND_KEPT = 4096
"""Characters of its command that are kept of a sandbox that has ended."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """A tunnel as it is stored. `address`: host:port of a `tcp` tunnel, once its node listens."""

    port: int
    protocol: str
    public: bool
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Home:
    """The machine that has a persistent sandbox's disk: the id that it keeps, and its name for people."""

    machine: str
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Why a persistent sandbox is to stop, and the token of who asked."""

    reason: Reason
    message: str
    token: str


@dataclass(frozen=True, slots=True)
class HeldImage:
    """The cluster's image that a spec named when it was admitted."""

    id: str
    digest: str


@dataclass(slots=True)
class SandboxRecord:
    """A sandbox from its acceptance on. `deadline`: by `steady_time`, until when it runs or has failed.

    `slot_id`: the slot that is to start it or holds it. `created_by`, `ended_by`: tokens of who asked for it;
    `ended_by` is on record before the end of a persistent one begins. Of a persistent one that has run: `home`;
    `stopping`, on record before the stop begins; `stop`: how it stopped last, until it runs again; `restarts`: how
    often in a row it was started by itself. `paused_at`: unix seconds, while it is paused or about to be. `suspended`:
    its memory is kept while it is stopped, until it runs again. `failure`: what its create failed with, `refusal`: what
    kept it off the record; both for those who wait for it. `asked`: creates that named it since this controller runs.
    `digest`: of the spec that was asked for; once it has ended, `spec` is shortened. `weight`: bytes of its texts.
    `name_from`: which sandbox had its name last. `image`: what its spec's image was resolved to, if that is one of the
    cluster's. `disk`: of a persistent one that was moved, the image that it starts from on another machine. `volumes`:
    the ids of its spec's volumes, in their order, empty where one is none; () where there are none. `mounted`: the
    image at each path, of those mounted into it while it runs. `hidden`: it is the cluster's own, in no listing and no
    quota, and whoever reaches it uses its files only. `waits_for`: while it waits for room, tells why.
    """

    id: str
    spec: SandboxSpec
    created_at: float
    tags: dict[str, str]
    life: Lifecycle = field(default_factory=Lifecycle)
    slot_id: str | None = None
    started: SandboxStarted | None = None
    end: End | None = None
    deadline: float = 0.0
    created_by: str = INSIDE.token
    ended_by: str | None = None
    home: Home | None = None
    stopping: StopRequest | None = None
    stop: End | None = None
    paused_at: float | None = None
    suspended: bool = False
    restarts: int = 0
    tunnels: dict[int, Exposure] = field(default_factory=dict)
    failure: ShoalError | None = None
    refusal: ShoalError | None = None
    asked: int = 0
    digest: str | None = None
    weight: int = 0
    name_from: str | None = None
    image: HeldImage | None = None
    disk: HeldImage | None = None
    volumes: tuple[str, ...] = ()
    mounted: Mapping[str, HeldImage] = field(default_factory=dict)
    hidden: bool = False
    waits_for: Callable[[], str | None] | None = field(default=None, compare=False, repr=False)
    _spec_row: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.weight = spec_weight(self.spec)

    @property
    def launch_spec(self) -> SandboxSpec:
        """Its spec for slots and nodes, which know an image of the cluster by its digest, a volume by its id, and what
        a bucket's secret is only if they ask."""
        image = self.disk or self.image
        spec = self.told_spec if image is None else replace(self.told_spec, image=image.digest)
        if not spec.volumes:
            return spec
        mounts = spec.volumes
        if self.volumes:
            mounts = tuple(replace(one, volume=found) for one, found in zip(mounts, self.volumes, strict=True))
        pairs = zip(mounts, self.spec.volumes, strict=True)
        return replace(spec, volumes=tuple(_for_node(spec.environment, told, whole) for told, whole in pairs))

    @property
    def told_spec(self) -> SandboxSpec:
        """Its spec without what is sealed."""
        spec = self.spec
        if spec.secrets:
            spec = replace(spec, secrets=tuple(use.told() for use in spec.secrets))
        if any(mount.secret is not None for mount in spec.volumes):
            told = (None if each.secret is None else each.secret.told() for each in spec.volumes)
            spec = replace(
                spec, volumes=tuple(replace(one, secret=use) for one, use in zip(spec.volumes, told, strict=True))
            )
        return spec

    @property
    def has_disk(self) -> bool:
        """Whether it is a persistent one that has run, so that its files are kept."""
        return self.home is not None or self.disk is not None

    @property
    def ended(self) -> bool:
        return self.life.phase in ENDED

    @property
    def state(self) -> State:
        if self.end is not None:
            return State.FAILED if self.end.reason in FAILURES else State.TERMINATED
        state = STATE[self.life.phase]
        return State.PAUSED if state is State.RUNNING and self.paused_at is not None else state

    @property
    def released(self) -> bool:
        """Whether its create failed, so that its idempotency key is free again."""
        return self.end is not None and self.end.reason in _CREATE_FAILED

    @property
    def info(self) -> SandboxInfo:
        started = self.started
        end = self.stop if self.life.phase in RESTING else self.end
        stopped_at = self.stop.ended_at if self.stop is not None and self.life.phase in RESTING else None
        return SandboxInfo(
            id=self.id,
            state=self.state,
            spec=self.told_spec,
            created_at=self.created_at,
            started_at=started.started_at if started else None,
            ended_at=self.end.ended_at if self.end else None,
            reason=end.reason if end else None,
            returncode=end.returncode if end else None,
            message=end.message if end else None,
            node_id=started.node_id if started else None,
            stopped_at=stopped_at,
            tags=dict(self.tags),
            waiting=None if self.waits_for is None else self.waits_for(),
            mounted_images={path: image.id for path, image in self.mounted.items()},
            memory_state=self.memory_state,
        )

    @property
    def memory_state(self) -> MemoryState | None:
        if self.suspended:
            return "saved"
        return "restored" if self.started is not None and self.started.resumed else None

    def finish(self, end: End) -> None:
        """Notes the end."""
        self.end = end
        self.paused_at = None
        self.mounted = {}
        self.suspended = False
        self.shorten()

    def rest(self, stop: End) -> None:
        """Notes that it has stopped."""
        self.stop = stop
        self.started = self.slot_id = self.stopping = self.paused_at = None

    def shorten(self) -> None:
        """Drops what only a living sandbox needs. Its variables may hold secrets, which must not outlive it, and
        together with a long command they are a thousand times the size of the rest."""
        if self.digest is None:
            self.digest = _digest(self.spec)
            self.spec = replace(self.told_spec, env={}, command=_beginning(self.spec.command))
            self._spec_row = None
        texts = (self.end.message if self.end else "", *self.tags.keys(), *self.tags.values())
        self.weight = spec_weight(self.spec) + sum(map(sys.getsizeof, texts))

    def asked_for(self, spec: SandboxSpec) -> bool:
        """Whether its creator asked for `spec`."""
        return self.spec == spec if self.digest is None else self.digest == _digest(spec)

    @property
    def spec_row(self) -> dict[str, Any]:
        if self._spec_row is None:
            spec = self.spec
            nested = {
                "resources": _plain(spec.resources),
                "tags": dict(spec.tags),
                "env": dict(spec.env),
                "volumes": to_rows(spec.volumes),
                "secrets": [use.to_row() for use in spec.secrets],
            }
            self._spec_row = {**_plain(spec), **nested}
        return self._spec_row


def secrets_of(spec: SandboxSpec) -> tuple[SecretUse, ...]:
    """All secrets in a spec: the sandbox's own, and those of its buckets."""
    return (*spec.secrets, *(mount.secret for mount in spec.volumes if mount.secret is not None))


def _for_node(environment: str, mount: MountSpec, whole: MountSpec) -> MountSpec:
    """`whole`: with the mark that tells secrets apart."""
    return replace(mount, secret=None, access=bucket_access(environment, whole)) if mount.kind == "bucket" else mount


def bucket_access(environment: str, mount: MountSpec) -> str:
    """What nodes call the way to a bucket: the same for all that may share one mount."""
    secret = mount.secret
    who = None if secret is None else (secret.name, secret.mark)
    parts = (environment, mount.bucket, mount.prefix, mount.endpoint, mount.region, who)
    return f"b-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"


def spec_weight(spec: SandboxSpec) -> int:
    """Bytes of the texts in a spec."""
    named = (pair for texts in (spec.env, spec.tags) for item in texts.items() for pair in item)
    sealed = (use.sealed for use in secrets_of(spec))
    return sum(map(sys.getsizeof, (spec.image, spec.workdir or "", *spec.command, *named, *sealed)))


_CREATE_FAILED = frozenset({Reason.IMAGE_ERROR, Reason.START_FAILED})


def with_changes(record: SandboxRecord, changes: Mapping[str, Any]) -> SandboxRecord:
    """A copy with some attributes changed. `dataclasses.replace` takes three times as long, and each end is written
    this way."""
    copied = copy(record)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def to_row(record: SandboxRecord) -> dict[str, Any]:
    """JSON-ready; `from_row` is its inverse."""
    return {
        "id": record.id,
        "spec": record.spec_row,
        "digest": record.digest,
        "created_at": record.created_at,
        "tags": record.tags,
        "state": record.state.value,
        "slot_id": record.slot_id,
        "began": None if record.started is None else _plain(record.started),
        "end": None if record.end is None else _plain(record.end),
        "deadline": record.deadline,
        "created_by": record.created_by,
        "ended_by": record.ended_by,
        "home": None if record.home is None else _plain(record.home),
        "stopping": None if record.stopping is None else _plain(record.stopping),
        "stop": None if record.stop is None else _plain(record.stop),
        "restarts": record.restarts,
        "paused_at": record.paused_at,
        "suspended": record.suspended,
        "image": None if record.image is None else _plain(record.image),
        "disk": None if record.disk is None else _plain(record.disk),
        "volumes": list(record.volumes),
        "mounted": {path: _plain(image) for path, image in record.mounted.items()},
        "hidden": record.hidden,
        "tunnels": [_plain(exposure) for exposure in record.tunnels.values()],
    }


def _started(row: Mapping[str, Any]) -> SandboxStarted:
    # A list of lists on disk; of before steps were timed there is none.
    took = tuple((name, seconds) for name, seconds in row.get("took", ()))
    return SandboxStarted(**{**row, "took": took})


def from_row(row: Mapping[str, Any]) -> SandboxRecord:
    spec = dict(row["spec"])
    spec["resources"] = Resources(**spec["resources"])
    spec["command"] = tuple(spec["command"])
    region = spec.pop("region", None)  # of an earlier version, which knew one
    spec["regions"] = tuple(spec.get("regions", () if region is None else (region,)))
    spec["volumes"] = from_rows(spec.get("volumes", ()))
    spec["secrets"] = tuple(map(SecretUse.from_row, spec.get("secrets", ())))
    home, stopping, image, disk = row.get("home"), row.get("stopping"), row.get("image"), row.get("disk")
    record = SandboxRecord(
        id=row["id"],
        spec=SandboxSpec(**spec),
        created_at=row["created_at"],
        tags=dict(row["tags"]),
        life=Lifecycle(_phase_on_record(row)),
        slot_id=row["slot_id"],
        started=None if row["began"] is None else _started(row["began"]),
        end=_end(row["end"]),
        # Missing in rows of an earlier version:
        deadline=row.get("deadline", 0.0),
        created_by=row.get("created_by", INSIDE.token),
        ended_by=row.get("ended_by"),
        home=None if home is None else Home(**home),
        stopping=None if stopping is None else StopRequest(**{**stopping, "reason": Reason(stopping["reason"])}),
        stop=_end(row.get("stop")),
        restarts=row.get("restarts", 0),
        paused_at=row.get("paused_at"),
        suspended=row.get("suspended", False),
        tunnels={kept["port"]: Exposure(**kept) for kept in row.get("tunnels", ())},
        digest=row.get("digest"),
        image=None if image is None else HeldImage(**image),
        disk=None if disk is None else HeldImage(**disk),
        volumes=tuple(row.get("volumes", ())),
        mounted={path: HeldImage(**image) for path, image in row.get("mounted", {}).items()},
        hidden=row.get("hidden", False),
    )
    if record.ended:
        record.shorten()
    return record


def _phase_on_record(row: Mapping[str, Any]) -> Phase:
    """Where a controller that reads the row begins with the sandbox; `ValueError` for a state that only another version
    knows."""
    if State(row["state"]) not in {*STATE.values(), State.PAUSED, *TERMINAL}:
        raise ValueError(f"state {row['state']!r}")
    if row["end"] is not None:
        return Phase.CLOSED
    if row["began"] is not None:
        return Phase.RUNNING
    if row.get("home") is not None or row.get("disk") is not None:
        return Phase.STOPPED if row["slot_id"] is None else Phase.RESTARTING
    return Phase.QUEUED if row["slot_id"] is None else Phase.STARTING


def _end(row: Mapping[str, Any] | None) -> End | None:
    return None if row is None else End(**{**row, "reason": Reason(row["reason"])})


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as a dict, one level deep: `asdict` copies all that lies below, which is most of what a create costs
    here."""
    names, values = _members(value.__class__)
    return dict(zip(names, values(value), strict=True))


@cache
def _members(kind: Any) -> tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]:
    """The names of a dataclass's fields, of which there are at least two, and what reads all of them at once."""
    names = tuple(one.name for one in fields(kind))
    return names, attrgetter(*names)


def _digest(spec: SandboxSpec) -> str:
    """The same for specs that ask for the same. What is at its default is left out: a later version may know of more to
    ask for."""
    asked = {**_asked(spec), "resources": _asked(spec.resources)}
    if spec.volumes:
        asked["volumes"] = [_asked(each) for each in spec.volumes]
        for each, mount in zip(asked["volumes"], spec.volumes, strict=True):
            if mount.secret is not None:
                each["secret"] = {**mount.secret.to_dict(), "mark": mount.secret.mark}
    if spec.secrets:
        asked["secrets"] = [{**use.to_dict(), "mark": use.mark} for use in spec.secrets]
    if len(spec.regions) == 1:
        (asked["region"],) = asked.pop("regions")  # as earlier versions, which knew one, wrote it
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _asked(value: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name, default in _defaults(value.__class__):
        wanted = getattr(value, name)
        if wanted != default:
            whole = isinstance(wanted, int) and not isinstance(wanted, bool)
            asked[name] = float(wanted) if whole else wanted  # 1 and 1.0 are the same, also in JSON
    return asked


@cache
def _defaults(kind: type) -> list[tuple[str, Any]]:
    return [(one.name, default_of(one)) for one in fields(kind)]


def _beginning(command: tuple[str, ...]) -> tuple[str, ...]:
    """So much of it that one sees what it was."""
    kept: list[str] = []
    left = _COMMAND_KEPT
    for item in command:
        if left <= 0:
            return (*kept, "…")
        kept.append(item if len(item) <= left else item[:left] + "…")
        left -= max(1, len(item))
    return tuple(kept)
