"""`shoal usage`."""

from __future__ import annotations

import csv as csv_module
import sys
import time
from typing import Annotated

import typer

from shoal.cli import console
from shoal.cli.options import Json, seconds
from shoal.cli.session import with_cluster
from shoal.model.errors import InvalidRequest
from shoal.model.spec import MIB
from shoal.model.usage import AMOUNTS, UsageRow

_COLUMNS = ("SANDBOXES", "HOURS", "CPU HOURS", "GIB HOURS", "DISK GIB HOURS", "RECEIVED", "SENT")


def usage(
    by: Annotated[
        str, typer.Option(metavar="WHAT", help="environment, day, hour, or tag:KEY for each value of a tag.")
    ] = "environment",
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From then on: a time ago (12h, 30d) or a day (2026-01-31).")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Up to then; default: now.")] = None,
    environment: Annotated[
        str | None,
        typer.Option("--environment", metavar="NAME", help="Only this environment; default: all that your token sees."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    json: Json = False,
) -> None:
    """Show what sandboxes used, summed.

    Time, CPU, memory, disk and network, by environment, day or tag.

    The sums are kept by the hour, for 90 days (store.usage_retention), and are half a minute late. CPU is what was
    used, not what was asked for.

    \b
    Examples:
      shoal usage --since 30d
      shoal usage --by day --since 7d --environment team-a
      shoal usage --by tag:job --since 24h
      shoal usage --by tag:user --since 2026-01-01 --until 2026-02-01 --csv > january.csv
    """
    if csv and json:
        raise InvalidRequest("--csv, --json: choose one", field="csv")
    start, end = _time("since", since), _time("until", until)
    rows = with_cluster(lambda client: client.usage.aio(by=by, since=start, until=end, environment=environment))
    if json:
        console.print_json([row.to_dict() for row in rows])
    elif csv:
        writer = csv_module.writer(sys.stdout)
        writer.writerow(("key", *AMOUNTS))
        writer.writerows((console.printable(row.key), *(getattr(row, name) for name in AMOUNTS)) for row in rows)
    elif rows:
        console.print_table((by.rpartition(":")[2].upper(), *_COLUMNS), [_row(row) for row in rows])
    else:
        which = " with such a tag" if by.startswith("tag:") else ""
        console.err().print(f"No sandbox{which} has run in that time. Nodes tell of theirs twice a minute.")


def _row(row: UsageRow) -> tuple[str, ...]:
    return (
        row.key,
        str(row.sandboxes),
        f"{row.seconds / 3600:.2f}",
        f"{row.cpu_seconds / 3600:.3f}",
        f"{row.memory_seconds / 3600 / 1024:.3f}",
        f"{row.disk_seconds / 3600 / 1024:.3f}",
        f"{row.network_in / MIB:.1f} MiB",
        f"{row.network_out / MIB:.1f} MiB",
    )


def _time(option: str, text: str | None) -> float | None:
    """Unix seconds."""
    if text is None:
        return None
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M"):
        try:
            return time.mktime(time.strptime(text, form))
        except (ValueError, OverflowError):
            continue
    try:
        ago = seconds(option, text)
    except InvalidRequest:
        raise InvalidRequest(
            f"--{option}: {text!r} is no time; write 12h or 30d for a time ago, or 2026-01-31", field=option
        ) from None
    return None if ago is None else max(0.0, time.time() - ago)
