"""What `shoal doctor --bench` prints."""

from __future__ import annotations

from typing import Any

from shoal.cli import console, settings
from shoal.cli.session import with_cluster
from shoal.model import cluster_file


def bench(json: bool) -> None:
    """Measures this machine and, if a cluster runs here, that."""
    from shoal.cluster.local import bench as local_bench

    known = settings.load()
    found: list[dict[str, Any]] = []
    for measure in local_bench.measures(known):
        found.append(measure.to_dict())
        if not json:
            _print(found[-1])
    if cluster_file.read(known.state_dir) is not None:
        for measure in with_cluster(lambda client: local_bench.cluster_measures()):
            found.append(measure.to_dict())
            if not json:
                _print(found[-1])
    if json:
        console.print_json(found)


def _print(measure: dict[str, Any]) -> None:
    out = console.out()
    mark = "[green]✓[/green]" if measure["ok"] else "[yellow]![/yellow]"
    out.print(f"{mark} {measure['name']:<34}", end=" ")
    if measure["value"] is None:
        out.print(measure["detail"], markup=False)
    else:
        beyond = "less" if measure["more"] else "more"
        note = f"usual: {measure['usual']:g}; {beyond} than {measure['bound']:g} is slow"
        out.print(f"{measure['value']:8.1f} {measure['unit']:<6} [dim]{note}[/dim]")
    if not measure["ok"]:
        out.print(f"    → {measure['remedy']}", markup=False)
