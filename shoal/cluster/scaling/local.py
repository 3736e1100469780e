"""Pretend machines on this one: each is a Ray node, with directories and a network of its own, that shares the engine.

    <state_dir>/m/<id>/record.json   the machine, written before anything is started
                       ending        it is being taken away
                       …             the state directory of its node (`shoal.cluster.local.join`)

A machine that does not join ends, as a cloud's does; what it said is in `<state_dir>/scaling/<id>.log`. `Faults` makes
clouds' failures: tests write them into `<state_dir>/scaling/faults.json`.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from shoal.cluster.local import joined_file, processes
from shoal.cluster.scaling import contract
from shoal.cluster.scaling.contract import CloudError, Launched, Machine, MachineState, NoCapacity, Notice, Order
from shoal.cluster.scaling.spec import LocalCluster, LocalRegionSpec, region_of
from shoal.model.cluster_file import write_private

_MACHINES = "m"
"""Short: Ray's sockets lie below it."""

_STARTS_S = 15.0
"""For so long a process that ends a machine may take to start."""

_ERRORS: Mapping[str, type[CloudError]] = {
    each.kind: each
    for each in (
        contract.NoCapacity,
        contract.Throttled,
        contract.QuotaReached,
        contract.Unauthorized,
        contract.Misconfigured,
        contract.RegionDown,
    )
}


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong in a region. `launch`, `machines`: kinds of errors; `never_join`; `notices`: seconds until a
    machine is taken away, by its id."""

    launch: str | None = None
    machines: str | None = None
    never_join: bool = False
    notices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """What is on record of a machine. `bridge`, `subnet`: of its sandboxes."""

    id: str
    type: str
    bridge: str
    subnet: str
    launched_at: float
    never_joins: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        write_private(directory / "record.json", json.dumps(asdict(self)).encode())


RECORD: TypeAdapter[LocalMachine] = TypeAdapter(LocalMachine)
_FAULTS: TypeAdapter[dict[str, Faults]] = TypeAdapter(dict[str, Faults])


def open_local(cluster: LocalCluster, state_dir: Path) -> list[LocalRegion]:
    """The pretend regions of a cluster whose head has this state directory."""
    return [LocalRegion(name, spec, state_dir) for name, spec in cluster.regions.items()]


class LocalRegion:
    """One pretend region."""

    def __init__(self, name: str, spec: LocalRegionSpec, state_dir: Path) -> None:
        self.name = name
        self.settles_s = 0.0
        self.each_s = 0.0
        self._spec = spec
        self._state_dir = state_dir

    def launch(self, order: Order) -> Launched:
        faults = self._faults()
        _raise(faults.launch, self.name)
        if order.type.partition(".")[2] not in self._spec.types:
            raise contract.Misconfigured(f"{self.name} has no type {order.type}")
        taken = [record.subnet for _, record in _records(self._state_dir)]
        launched: list[Machine] = []
        for _ in range(order.count):
            subnet = _free_subnet(taken)
            if subnet is None:
                return Launched(launched, NoCapacity("this machine has no free network left"))
            taken.append(subnet)
            token = secrets.token_hex(3)
            record = LocalMachine(
                id=f"local-{token}",
                type=order.type,
                bridge=f"sm{token}",
                subnet=subnet,
                launched_at=time.time(),
                never_joins=faults.never_join,
                tags=dict(order.tags),
            )
            directory = self._state_dir / _MACHINES / token
            directory.mkdir(parents=True, mode=0o700)
            record.write(directory)
            _run(self._state_dir, directory, "join")
            launched.append(_machine(directory, record))
        return Launched(launched)

    def machines(self) -> Sequence[Machine]:
        _raise(self._faults().machines, self.name)
        return [_machine(directory, record) for directory, record in self._records()]

    def foreign_machines(self) -> Sequence[str]:
        return []  # its machines lie in the head's own directory

    def terminate(self, machine_ids: Sequence[str]) -> None:
        _raise(self._faults().machines, self.name)
        for directory, record in self._records():
            if record.id in machine_ids:
                (directory / "ending").touch()
                _run(self._state_dir, directory, "end")

    def notices(self) -> Sequence[Notice]:
        return [Notice(machine_id, seconds) for machine_id, seconds in self._faults().notices.items()]

    def _records(self) -> Iterator[tuple[Path, LocalMachine]]:
        return (each for each in _records(self._state_dir) if region_of(each[1].type) == self.name)

    def _faults(self) -> Faults:
        try:
            found = _FAULTS.validate_json((self._state_dir / "scaling" / "faults.json").read_bytes())
        except (OSError, ValidationError):
            return Faults()
        return found.get(self.name, Faults())


def _records(state_dir: Path) -> Iterator[tuple[Path, LocalMachine]]:
    for path in sorted((state_dir / _MACHINES).glob("*/record.json")):
        try:
            yield path.parent, RECORD.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue  # it has just gone


def _machine(directory: Path, record: LocalMachine) -> Machine:
    joined = joined_file.path_in(directory).exists()
    state = MachineState.RUNNING if joined else MachineState.STARTING
    if _is_ending(directory / "ending"):
        state = MachineState.TERMINATING
    return Machine(
        id=record.id, type=record.type, state=state, address="127.0.0.1", launched_at=record.launched_at,
        tags=record.tags,
    )  # fmt: skip


def _is_ending(path: Path) -> bool:
    """Whether a process is at it, or starts. If it was killed, the machine runs on, to be ended again."""
    try:
        with path.open() as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _STARTS_S:
                return True
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _run(state_dir: Path, directory: Path, what: str) -> None:
    """Carries out a machine's start or end in a process that outlives this one."""
    with (state_dir / "scaling" / f"{directory.name}.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "shoal.cluster.scaling.local_machine", what, str(state_dir), str(directory)],
            env=processes.environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _raise(kind: str | None, region: str) -> None:
    if kind is not None:
        raise _ERRORS[kind](f"{region}: as the test says")


def _free_subnet(taken: Sequence[str]) -> str | None:
    """One of 4,096 addresses that this machine has no route into, and that is none of `taken`."""
    used = [ipaddress.IPv4Network(each) for each in (*taken, *_routes())]
    for number in range(16 * 32):
        subnet = ipaddress.IPv4Network(f"10.{224 + number // 16}.{number % 16 * 16}.0/20")
        if not any(subnet.overlaps(each) for each in used):
            return str(subnet)
    return None


def _routes() -> list[str]:
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return [f"{_address(row[1])}/{_address(row[7])}" for row in rows if row[7] != "00000000"]


def _address(little_endian: str) -> str:
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(little_endian)))


def await_gone(state_dir: Path, deadline: float) -> None:
    """Waits until no pretend machine is left, or until `deadline` by the monotonic clock."""
    while any(_records(state_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not any(_records(state_dir)):
        # A launch that was cut short leaves a directory without a record, in which nothing was started.
        shutil.rmtree(state_dir / _MACHINES, ignore_errors=True)
