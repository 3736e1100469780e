"""The progress bar of a map, on a terminal."""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """Counts outcomes on stderr if that is a terminal; elsewhere it does nothing. `total`: None if nobody knows."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._failed = 0
        self._progress: Any = None
        self._task: Any = None

    def start(self) -> None:
        """Shows the bar."""
        from rich.console import Console  # only where a bar is wanted: it loads slowly
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(file=sys.stderr)
        if not console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task("", total=self._total)
        self._progress.start()

    def count(self, ok: bool) -> None:
        """One more outcome."""
        if self._progress is None:
            return
        self._failed += not ok
        self._progress.update(self._task, advance=1, description=f"{self._failed} failed" if self._failed else "")

    def stop(self) -> None:
        """Leaves the bar as it is. May be called again."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()
