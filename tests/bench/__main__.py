"""Takes all measures and writes them down: `python -m tests.bench --output build/bench.json`, or `make bench`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import shoal
from tests.bench import machine, table
from tests.bench.cluster import Bench, cluster
from tests.bench.measures import (
    GROUPS,
    Attempts,
    Measurements,
    measure_cycles,
    measure_http,
    measure_inside,
    measure_peer,
    measure_scaling,
)
from tests.bench.ours import of as processes_of
from tests.bench.overhttp import Plain, ShoalClient
from tests.bench.peers.dockerpy import DockerPy
from tests.bench.peers.notinstallable import NotInstallable
from tests.bench.peers.rayexp import RayExperimental
from tests.bench.peers.swerex import SweRex
from tests.bench.quiet import wait_quiet
from tests.bench.shoalpy import Shoal
from tests.bench.subject import Subject


def _leave_ray() -> None:
    import ray  # only now: it reads the cluster's variables on import

    ray.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Shoal beside docker-py, on one engine.")
    parser.add_argument(
        "--output", type=Path, default=Path("build/bench.json"), help="where the figures go (%(default)s)"
    )
    parser.add_argument("--peers", action="store_true", default=os.environ.get("PEERS", "") not in ("", "0"))
    parser.add_argument("--engine", default="oci", choices=("oci", "docker"), help="Shoal's (%(default)s)")
    parser.add_argument("--only", default=",".join(GROUPS), metavar="GROUP,…", help="some of these alone: %(default)s")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    arguments = parser.parse_args(argv)
    console = Console()
    wanted = frozenset(arguments.only.split(","))
    if unknown := wanted - set(GROUPS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    try:
        met, failed = _bench(console, arguments.output, arguments.engine, wanted, with_peers=arguments.peers)
    except shoal.ShoalError as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 1
    if failed:
        console.print(f"Failed: {', '.join(failed)}; see above.", style="red", highlight=False, markup=False)
    return 1 if failed or (arguments.check and not met) else 0


def _bench(
    console: Console, output: Path, engine: str, wanted: frozenset[str], *, with_peers: bool
) -> tuple[bool, Sequence[str]]:
    """Whether every target was met, and the groups that failed."""
    output.parent.mkdir(parents=True, exist_ok=True)

    begun = time.monotonic()

    def say(step: str) -> None:
        console.print(f"{time.monotonic() - begun:5.0f} s  {step} …", style="dim", highlight=False, markup=False)

    @contextmanager
    def report(step: str) -> Iterator[None]:
        say(step)
        yield

    with ExitStack() as stack:
        bench = stack.enter_context(cluster(report, engine))
        facts = machine.facts(bench.docker.address, bench.engine.kind)
        stack.callback(_leave_ray)  # or Ray ends this process, when it finds its cluster gone
        ours = Shoal(shoal.connect(), bench.image)
        stack.callback(ours.close)
        plain = DockerPy(bench.docker.address, bench.image)
        stack.callback(plain.close)
        start = time.monotonic()
        attempts = Attempts(say)
        found = measure_inside(ours, plain, processes_of(bench), bench.containers, wanted, attempts)
        found = replace(found, engine=bench.engine.kind)
        if not wanted.isdisjoint({"http", "cycles"}):
            found = _with_http(found, bench, ours, plain, wanted, attempts)
        if "region" in wanted:
            with attempts.attempt("region"):
                found = measure_scaling(bench.file, found, say)
        for make in _peers(bench.docker.address, bench.image, output.parent) if with_peers else ():
            found = _with_peer(found, make, say)
        seconds = time.monotonic() - start
        found = replace(found, failed=tuple(attempts.failed))
        result = table.to_dict(found, facts, seconds)
        output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    table.show(console, found)
    console.print(f"Measured in {seconds:.0f} s; the figures are in {output}.", highlight=False)
    return all(result["met"].values()), found.failed


def _with_http(
    found: Measurements,
    bench: Bench,
    ours: Shoal,
    plain: DockerPy,
    wanted: frozenset[str],
    attempts: Attempts,
) -> Measurements:
    """`found`, and the same by way of the API."""
    inside = ours.client
    _, token = inside.create_token("bench", environment="main", scope="run")
    requests = Plain(bench.file.api_url, token)
    if "cycles" in wanted:
        with attempts.attempt("cycles"):
            found = measure_cycles(requests, plain, bench.image, found, attempts.say)
    if "http" not in wanted:
        return found
    client = shoal.connect(bench.file.api_url, token=token)
    shoal.client.cluster.use(inside)
    through_face = ShoalClient(client, bench.image)

    def ready() -> None:
        wait_quiet()
        ours.wait_warm()

    with attempts.attempt("http"), closing(through_face):
        return measure_http(requests, through_face, plain, bench.image, found, ready, attempts.say)
    return found


def _peers(engine: str, image: str, directory: Path) -> Sequence[Callable[[], Subject]]:
    return (
        lambda: SweRex(engine, image, directory / "peers"),
        lambda: RayExperimental(engine, image, directory),
    )


def _with_peer(found: Measurements, make: Callable[[], Subject], say: Callable[[str], None]) -> Measurements:
    """`found`, and what the peer reaches, if it can be had on this machine."""
    try:
        peer = make()
    except NotInstallable as error:
        say(f"one peer less: {error}")
        return found
    say(f"all that {peer.name} can do")
    with closing(peer):
        return measure_peer(peer, found, say)


if __name__ == "__main__":
    sys.exit(main())
