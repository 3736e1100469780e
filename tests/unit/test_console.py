"""Tables for people: a line for each row on any terminal, and whole where nobody looks."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.console import Console

from shoal.cli import console

COLUMNS = ("ID", "NAME", "IMAGE", "STATE", "AGE", "COMMAND")
ROWS = (
    (
        "sb-4fd2mzq7c3wnk5xe",
        "漢字漢字漢字",
        f"registry.example.org/{'team/' * 40}",
        "running",
        "3h",
        "sh -c 'sleep 9\n9'",
    ),
    ("sb-4fd2mzq7c3wnk5xf", "", "shoal/base", "failed", "12m", ""),
)


@pytest.mark.parametrize("width", [60, 70, 80, 120])
def test_a_row_is_a_line_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        console, "out", lambda: Console(width=width, force_terminal=True, no_color=True, soft_wrap=True)
    )
    console.print_table(COLUMNS, ROWS)
    head, first, second = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, (first, second))) <= width
    assert first.startswith(ROWS[0][0])
    assert second.startswith(ROWS[1][0])
    assert "COMMAND" in head


def test_where_nothing_is_and_then_what_is_last_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "out", lambda: Console(width=28, force_terminal=True, no_color=True, soft_wrap=True))
    console.print_table(("NODE", "REGION", "SANDBOXES", "CPU", "ID"), [("vm", "", "5", "2", "1fe")])
    head, row = capsys.readouterr().out.splitlines()
    assert "REGION" not in head
    assert row.split() == ["vm", "5", "2", "1fe"]
    console.print_table(tuple("ABCDEFGH"), [tuple(["x" * 12] * 8)])
    head, row = capsys.readouterr().out.splitlines()
    assert row == "x" * 12 + "  xxxxx…" * 2


def test_piped_nothing_is_cut_and_no_line_ends_with_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(COLUMNS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert ROWS[0][2] in lines[1]
    assert lines[2].endswith("12m")
    assert [line.rstrip() for line in lines] == lines
    assert len(lines) == 3
