"""Compiling a program where that goes wrong half-way. With a real Go, and a program that is only a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatch_build import BINARIES, PROGRAMS, build_program


def test_what_was_half_made_is_made_again(tmp_path: Path) -> None:
    sources = tmp_path / PROGRAMS["shoal-agent"]
    sources.mkdir(parents=True)
    (sources / "go.mod").write_text("module agent\n\ngo 1.25\n")
    main = sources / "main.go"
    first = "package main\n\nfunc main() {}\n"
    main.write_text(first)
    amd64, _ = build_program("shoal-agent", tmp_path)
    good = amd64.read_bytes()

    main.write_text('package main\n\nfunc main() { println("changed") }\n')
    arm64 = sources / "wrong_arm64.go"
    arm64.write_text("package main\n\nvar wrong int = true\n")
    with pytest.raises(RuntimeError, match="does not compile for arm64"):
        build_program("shoal-agent", tmp_path)
    assert amd64.read_bytes() != good
    assert not list((tmp_path / BINARIES).glob(".shoal-agent-*"))

    main.write_text(first)
    arm64.unlink()
    build_program("shoal-agent", tmp_path)
    assert amd64.read_bytes() == good
