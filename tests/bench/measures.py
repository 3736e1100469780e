"""The measures that there are, what each must reach, and in which order they are taken: one list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from shoal.model.cluster_file import ClusterFile
from tests.bench import (
    creates,
    cycles,
    destroys,
    execs,
    files,
    gvisor,
    many,
    maps,
    memory,
    overhttp,
    scaling,
    shoalpy,
    snapshots,
    travel,
    tunnels,
    volumes,
)
from tests.bench.memory import Cost
from tests.bench.overhttp import Plain, ShoalClient, ShoalHttp
from tests.bench.peers.dockerpy import DockerPy
from tests.bench.quiet import wait_quiet
from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples
from tests.bench.subject import Subject

GROUPS = (
    "memory",
    "execs",
    "files",
    "creates",
    "destroys",
    "snapshots",
    "travel",
    "volumes",
    "map",
    "burst",
    "live",
    "gvisor",
    "http",
    "cycles",
    "region",
)
"""The measures that can be taken by themselves. Those over HTTP are held against creates."""

HTTP_CALLERS = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure: its samples by the subject's name."""

    key: str
    what: str
    by: dict[str, Samples]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure of Shoal alone, in the unit that its key or its samples name."""

    key: str
    what: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class Measurements:
    """All of a run. `idle` is what one idle sandbox costs, by the subject's name, and empty if that was not measured;
    `figures` are ours alone; `failed` are the groups of which something was not measured."""

    measured: tuple[Measured, ...]
    idle: dict[str, Cost]
    figures: tuple[Figure, ...] = ()
    engine: str = "docker"
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempts:
    """Takes measures group by group: one that fails takes no other along. `say` is told what comes next."""

    say: Callable[[str], None]
    failed: list[str] = field(default_factory=list)
    """The groups that did."""

    @contextmanager
    def attempt(self, group: str) -> Iterator[None]:
        """Around what measures a group, or a part of it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever went wrong in one group, the others can be measured
            self.say(f"{group} failed: {type(error).__name__}: {str(error)[:500]}")
            if group not in self.failed:
                self.failed.append(group)


def measure_inside(
    shoal: Shoal,
    docker_py: Subject,
    ours: Callable[[], set[int]],
    containers: Callable[[str], set[str]],
    wanted: frozenset[str],
    attempts: Attempts,
) -> Measurements:
    """Takes the measures of the wanted groups, one after the other.

    `ours`: the processes that count for memory; `containers`: those that a subject may have now.
    """
    say, attempt = attempts.say, attempts.attempt
    subjects: list[Subject] = [docker_py, shoal]
    done: list[Measured] = []

    def add(key: str, what: str, by: dict[str, Samples]) -> None:
        done.append(Measured(key, what, by))

    # First: later there are idle slots left from what was measured before, and a sandbox that takes one of these adds
    # too little.
    idle: dict[str, Cost] = {}
    if "memory" in wanted:
        say("memory of idle sandboxes")
        with attempt("memory"):
            idle = {subject.name: memory.per_sandbox(subject, ours) for subject in (shoal, docker_py)}

    if "execs" in wanted:
        say("execs, one after the other")
        with attempt("execs"):
            _execs(shoal, subjects, add, say)

    if "files" in wanted:
        say("files of 10 MiB")
        with attempt("files"):
            writes, reads = files.write_and_read(subjects)
            add("file_write", "write 10 MiB", writes)
            add("file_read", "read 10 MiB", reads)

    if not _NEED_CREATES.isdisjoint(wanted):
        with attempt("creates"):
            _creates(shoal, subjects, add, say)

    if "destroys" in wanted:
        say("destroys")
        with attempt("destroys"):
            seen, gone = destroys.seen_and_gone(subjects, containers, wait_quiet)
            add("destroy", "destroy, as its caller sees it", seen)
            add("destroy_gone", "destroy, until the container is gone", gone)

    if "snapshots" in wanted:
        say("images of what changed")
        with attempt("snapshots"):
            add("snapshot_fs", "image of 10 MiB that changed", snapshots.taken(subjects, wait_quiet))

    figures: list[Figure] = []

    def figure(
        group: str, step: str, key: str, what: str, take: Callable[[Shoal, Callable[[], None]], Samples]
    ) -> None:
        if group in wanted:
            say(step)
            with attempt(group):
                figures.append(Figure(key, what, take(shoal, wait_quiet)))

    figure(
        "snapshots",
        "creates from a snapshot",
        "create_from_snapshot",
        "cold create from a snapshot ÷ from its base",
        snapshots.created_from,
    )
    figure(
        "travel",
        "an image of 200 MiB from node to node",
        "image_fetch",
        "a node's fetch of 200 MiB ÷ copying the bytes",
        travel.fetched,
    )
    figure(
        "map",
        f"a map of {maps.ITEMS} items, {maps.CALLERS} at a time",
        "map_efficiency",
        "items per second of shoal.map ÷ by hand",
        maps.efficiency,
    )
    figure(
        "burst",
        f"{creates.BURST} takes at once from a pool of as many",
        "pool_burst",
        f"{creates.BURST} takes at once, seconds",
        creates.burst,
    )
    figure(
        "live",
        f"{many.LIVE} sandboxes at once",
        "live_200_exec_p95_ms",
        f"exec in {many.LIVE} that live, 95th percentile",
        many.answers,
    )
    if "volumes" in wanted:
        say("volumes")
        with attempt("volumes"):
            figures += [Figure(key, what, taken) for key, (what, taken) in volumes.figures(shoal, wait_quiet).items()]
    if "gvisor" in wanted and gvisor.there(shoal):
        say("gVisor beside runc")
        with attempt("gvisor"):
            for key, (what, taken) in gvisor.figures(shoal, wait_quiet).items():
                figures.append(Figure(key, what, in_ms(taken)))
    return Measurements(tuple(done), idle, tuple(figures))


def _execs(
    shoal: Shoal,
    subjects: Sequence[Subject],
    add: Callable[[str, str, dict[str, Samples]], None],
    say: Callable[[str], None],
) -> None:
    latency = execs.latency(subjects)
    add("exec_p50", "exec, one caller", latency)
    add("exec_p50_aio", "the same, async", {**latency, shoal.name: shoalpy.latency_aio(shoal)})
    for count in (1, 8):
        what = f"execs, {execs.CALLERS} callers, {count} sandbox{'es' if count > 1 else ''}"
        say(what)
        rates = execs.rate(subjects, count)
        add(f"exec_rate_{count}", what, rates)
        add(f"exec_rate_{count}_aio", "the same, async", {**rates, shoal.name: shoalpy.rate_aio(shoal, count)})


_NEED_CREATES = frozenset({"creates", "http"})


def _creates(
    shoal: Shoal,
    subjects: Sequence[Subject],
    add: Callable[[str, str, dict[str, Samples]], None],
    say: Callable[[str], None],
) -> None:
    say("creates, cold")
    cold = creates.cold(subjects, wait_quiet)
    add("create_cold", "create to first exec, cold", cold)

    say("creates, warm")

    def ready() -> None:
        wait_quiet()
        shoal.wait_warm()

    add("create_warm", "create to first exec, warm", {**cold, shoal.name: creates.warm(shoal, ready)})

    say("takes from a pool")
    add("create_pool", "take from a pool to first exec", {**cold, shoal.name: creates.from_pool(shoal, wait_quiet)})

    say(f"creates, {creates.RATE_CALLERS} callers")
    add(
        "create_rate",
        f"{creates.RATE_CREATES} creates, {creates.RATE_CALLERS} callers",
        creates.rate(subjects, wait_quiet),
    )


def measure_http(
    plain: Plain,
    client: ShoalClient,
    docker_py: DockerPy,
    image: str,
    found: Measurements,
    ready: Callable[[], None],
    say: Callable[[str], None],
) -> Measurements:
    """What the HTTP API reaches, beside what was `found`: by plain requests, and through the client (`_client`)."""
    by_requests = ShoalHttp(plain, image)
    done: list[Measured] = []

    say("execs over HTTP, one after the other")
    latency = execs.latency([docker_py, by_requests])
    done.append(Measured("http_exec_p50", "exec over HTTP, one caller", latency))
    through_face = {**latency, client.name: execs.latency([client])[client.name]}
    done.append(Measured("http_exec_p50_client", "the same, Python client", through_face))

    say(f"execs over HTTP, {HTTP_CALLERS} callers, 8 sandboxes")
    rates = execs.rate([docker_py, by_requests], 8, HTTP_CALLERS)
    done.append(Measured("http_exec_rate", f"execs over HTTP, {HTTP_CALLERS} callers, 8 sandboxes", rates))
    through_face = {**rates, client.name: execs.rate([client], 8, HTTP_CALLERS)[client.name]}
    done.append(Measured("http_exec_rate_client", "the same, Python client", through_face))

    say("creates over HTTP, warm")
    cold = next(each.by for each in found.measured if each.key == "create_cold")
    warm = {**cold, by_requests.name: creates.warm(by_requests, ready)}
    done.append(Measured("http_create_warm", "create to first exec over HTTP, warm", warm))

    say(f"GETs through a tunnel, {tunnels.CALLERS} callers")
    for key, what, server in (
        ("tunnel_get", "GET of a file through a tunnel", tunnels.STATIC_SERVER),
        ("tunnel_bare", "the same, a server that only answers", tunnels.BARE_SERVER),
    ):
        with tunnels.by_tunnel(plain, image, server) as inside, tunnels.by_address(docker_py, server) as direct:
            sites = {by_requests.name: inside, docker_py.name: direct}
            gets = {name: tunnels.latency(site) for name, site in sites.items()}
            done.append(Measured(f"{key}_p50", f"{what}, one caller", gets))
            done.append(Measured(f"{key}_rate", f"{what}, {tunnels.CALLERS} callers", tunnels.rates(sites)))
            if server is tunnels.BARE_SERVER:
                tunnel_down = tunnels.download(inside)

    say("files of 100 MiB over HTTP")
    up, down = overhttp.file_rates(by_requests)
    say("first bytes over HTTP")
    first = overhttp.first_byte(by_requests, plain)
    figures = (
        Figure("http_file_up", "write 100 MiB over HTTP", up),
        Figure("http_file_down", "read 100 MiB over HTTP", down),
        Figure("tunnel_down", "read 100 MiB through a tunnel", tunnel_down),
        Figure("http_first_byte_ms", "a line of output, from its writing to its reading", in_ms(first)),
    )
    return replace(found, measured=(*found.measured, *done), figures=(*found.figures, *figures))


def in_ms(seconds: Samples) -> Samples:
    return Samples("ms", tuple(1000 * value for value in seconds.values))


def measure_cycles(
    plain: Plain, docker_py: DockerPy, image: str, found: Measurements, say: Callable[[str], None]
) -> Measurements:
    """`found`, and how many whole lives of many callers go through in a second: over HTTP, and by Docker's socket."""
    say(f"{cycles.CYCLES} lives, {cycles.CALLERS} callers")
    rates, creates_s = cycles.rates([docker_py, ShoalHttp(plain, image)], wait_quiet)
    what = f"create, exec and destroy over HTTP, {cycles.CALLERS} callers"
    slow = Figure("cycles_create_p95_s", "a create of these, 95th percentile", creates_s)
    return replace(found, measured=(*found.measured, Measured("cycles", what, rates)), figures=(*found.figures, slow))


def measure_scaling(where: ClusterFile, found: Measurements, say: Callable[[str], None]) -> Measurements:
    """`found`, and how long a region without machines takes to its first sandbox."""
    say("from no machine in a region to the first sandbox there")
    taken = Figure(
        "region_up_s", "from no machine in a region to the first sandbox", scaling.seconds_to_first_sandbox(where)
    )
    return replace(found, figures=(*found.figures, taken))


def measure_peer(peer: Subject, found: Measurements, say: Callable[[str], None]) -> Measurements:
    """What a peer reaches in the measures that it shares, beside what was `found`.

    Where it gives up it keeps what it has reached.
    """
    reached: dict[str, Samples] = {}
    try:
        reached["exec_p50"] = execs.latency([peer])[peer.name]
        for count in (1, 8):
            reached[f"exec_rate_{count}"] = execs.rate([peer], count)[peer.name]
        writes, reads = files.write_and_read([peer])
        reached["file_write"], reached["file_read"] = writes[peer.name], reads[peer.name]
        reached["create_cold"] = creates.cold([peer], wait_quiet)[peer.name]
        reached["create_rate"] = creates.rate([peer], wait_quiet)[peer.name]
    except Exception as error:  # noqa: BLE001  # a peer's trouble, whatever its kind, is not the bench's
        say(f"{peer.name} gave up: {type(error).__name__}: {str(error)[:200]}")
    measured = [
        replace(each, by={**each.by, peer.name: reached[each.key]}) if each.key in reached else each
        for each in found.measured
    ]
    return replace(found, measured=tuple(measured))
