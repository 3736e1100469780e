"""What `shoal doctor --bench` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.cli import console, settings
from shoal.cli.session import with_cluster
from shoal.model import cluster_file

if TYPE_CHECKING:
    from shoal.cluster.local.bench import Measure


def bench(json: bool) -> None:
    """Measures this machine and, if a cluster runs here, that."""
    from shoal.cluster.local import bench as local_bench

    known = settings.load()
    found: list[Measure] = []
    for measure in local_bench.measures(known):
        found.append(measure)
        if not json:
            _print(measure)
    if cluster_file.read(known.state_dir) is not None:
        for measure in with_cluster(lambda client: local_bench.cluster_measures()):
            found.append(measure)
            if not json:
                _print(measure)
    if json:
        console.print_json([measure.to_dict() for measure in found])


def _print(measure: Measure) -> None:
    out = console.out()
    mark = "[green]✓[/green]" if measure.ok else "[yellow]![/yellow]"
    out.print(f"{mark} {measure.name:<34}", end=" ")
    if measure.value is None:
        out.print(measure.detail, markup=False)
    else:
        beyond = "less" if measure.more else "more"
        note = f"usual: {measure.usual:g}; {beyond} than {measure.bound:g} is slow"
        out.print(f"{measure.value:8.1f} {measure.unit:<6} [dim]{note}[/dim]")
    if not measure.ok:
        out.print(f"    → {measure.remedy}", markup=False)
