"""The progress bar of a map: on a terminal, or in a notebook."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal.client.html import card
from shoal.client.rollouts.outcome import score_of

_REDRAW_S = 0.2
"""A notebook's bar is drawn this often at most: each time is a message to the browser, which keeps them all."""


@dataclass(slots=True)
class Progress:
    """How far a map is. `total`: None if nobody knows. `mean`: of the values that are numbers, or rewards."""

    total: int | None
    done: int = 0
    failed: int = 0
    began: float = field(default_factory=time.monotonic)
    over: bool = False
    _sum: float = 0.0
    _numbers: int = 0

    def count(self, value: object, ok: bool) -> None:
        """One more outcome."""
        self.done += 1
        self.failed += not ok
        score = score_of(value) if ok else None
        if score is not None:
            self._sum += score
            self._numbers += 1

    @property
    def mean(self) -> float | None:
        return self._sum / self._numbers if self._numbers else None

    def __repr__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        return ", ".join(filter(None, (f"{self.done}{of} done", *(f"{name} {told}" for name, told in self._facts()))))

    def _repr_html_(self) -> str:
        known = "" if self.total is None else f' max="{self.total}"'
        # Without a value the browser shows that something is under way, not how far it is.
        value = "" if self.total is None and not self.over else f' value="{self.done}"'
        of = "" if self.total is None else f" of {self.total:,}"
        heading = f'<progress{known}{value} style="width: 20em"></progress> {self.done:,}{of}'
        return card(heading, dict(self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        passed = time.monotonic() - self.began
        facts = [("failed", str(self.failed))] if self.failed else []
        if self.mean is not None:
            facts.append(("mean", f"{self.mean:.3g}"))
        facts.append(("after", _clock(passed)))
        if self.total is not None and 0 < self.done < self.total and not self.over:
            facts.append(("left", _clock(passed / self.done * (self.total - self.done))))
        return facts


class Display(Protocol):
    """Where a bar is shown."""

    def update(self, progress: Progress) -> None: ...
    def close(self, progress: Progress) -> None: ...


class Bar:
    """Counts outcomes where somebody looks: in a notebook, or on stderr if that is a terminal. Elsewhere it does
    nothing. `total`: None if nobody knows."""

    def __init__(self, total: int | None) -> None:
        self._progress = Progress(total)
        self._display: Display | None = None

    def start(self) -> None:
        """Shows the bar."""
        self._progress.began = time.monotonic()
        self._display = _notebook(self._progress) or _terminal(self._progress)

    def count(self, value: object, ok: bool) -> None:
        """One more outcome."""
        self._progress.count(value, ok)
        if self._display is not None:
            self._display.update(self._progress)

    def stop(self) -> None:
        """Leaves the bar as it is. May be called again."""
        display, self._display = self._display, None
        self._progress.over = True
        if display is not None:
            display.close(self._progress)


class _Notebook:
    """A cell's output, which is replaced as the map goes on. Text frontends show it as text."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._drawn = time.monotonic()

    def update(self, progress: Progress) -> None:
        if time.monotonic() - self._drawn >= _REDRAW_S:
            self.close(progress)

    def close(self, progress: Progress) -> None:
        self._handle.update(progress)
        self._drawn = time.monotonic()


class _Terminal:
    def __init__(self, shown: Any, total: int | None) -> None:
        self._shown = shown
        self._task = shown.add_task("", total=total)
        shown.start()

    def update(self, progress: Progress) -> None:
        told = f"{progress.failed} failed" if progress.failed else ""
        self._shown.update(self._task, completed=progress.done, description=told)

    def close(self, progress: Progress) -> None:
        self._shown.stop()


def _notebook(progress: Progress) -> Display | None:
    """None where no notebook's kernel runs this program."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    if getattr(get_ipython(), "kernel", None) is None:
        return None
    return _Notebook(display(progress, display_id=True))


def _terminal(progress: Progress) -> Display | None:
    """None where stderr is no terminal."""
    from rich.console import Console  # only where a bar is wanted: it loads slowly
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Shown,
    )

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return None
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    return _Terminal(Shown(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console), progress.total)


def _clock(seconds: float) -> str:
    """`0:07`, `1:02:03`"""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
