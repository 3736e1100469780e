"""gVisor: where its program is, how it is tried, and how it is built, with programs that pretend."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from shoal.actors.engines import gvisor
from shoal.actors.engines.gvisor import Gvisor
from shoal.cluster.local import engines, gvisor_filters
from shoal.cluster.local import gvisor as local_gvisor
from shoal.model.errors import FailedPrecondition, Unavailable
from shoal.model.report import silent
from shoal.model.settings import NodeSettings, Settings

AS_ROOT = pytest.mark.usefixtures("as_root")  # only root tries gVisor


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def settings(state_dir: Path, runsc: Path | None = None) -> Settings:
    return Settings(state_dir=state_dir, node=NodeSettings(runsc=runsc))


def test_an_operators_runsc_goes_before_the_one_that_was_built(tmp_path: Path) -> None:
    assert gvisor.find(settings(tmp_path)) is None
    own, built = tmp_path / "own", program(gvisor.built(tmp_path), "exit 0")
    assert gvisor.find(settings(tmp_path)) == Gvisor(built, "systrap")
    assert gvisor.find(settings(tmp_path, own)) == Gvisor(own, "systrap")
    assert gvisor.problem(Gvisor(own, "systrap")) is not None, "named, but not there"


def test_what_is_written_reaches_the_sandboxs_own_disk() -> None:
    command = Gvisor(Path("/runsc"), "kvm").command(Path("/state"), "kill", "x", "9")
    assert {"--overlay2=none", "--platform=kvm", "--host-uds=open", "--root=/state"} < set(command[1:-3])
    assert (command[0], command[-3:]) == ("/runsc", ["kill", "x", "9"])


@AS_ROOT
def test_it_is_tried_once_with_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = program(tmp_path / "good", 'test "$1" = --version && echo "runsc version v1.2"; exit 0')
    assert gvisor.problem(Gvisor(good, "systrap")) is None
    assert gvisor.version(Gvisor(good, "systrap")) == "v1.2"
    bad = program(tmp_path / "bad", "echo no such platform; exit 128")
    assert "no such platform" in (gvisor.problem(Gvisor(bad, "kvm")) or "")
    monkeypatch.setattr(gvisor, "_TRY_S", 0.3)
    hung = program(tmp_path / "hung", f'case "$*" in *run*) echo $$ > {tmp_path}/pid; sleep 60;; esac')
    began = time.monotonic()
    assert "did not end" in (gvisor.problem(Gvisor(hung, "kvm")) or "")
    assert time.monotonic() - began < 20
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/exe").exists()


GO = """case "$1 $2" in
list*) echo '{"Version": "v0.0.0-2026", "Dir": "'$MODULE'"}' ;;
get*) test "$2" = gvisor.dev/gvisor/runsc@v0.0.0-2026 ;;
run*) test -f filters/main.go && printf %s "$PRINTED"; exit ${FILTERS_FAIL:-0} ;;
mod*) echo "$3" > replaced ;;
build*)
    while [ "$1" != -o ]; do shift; done
    echo "$3" > "$2"; cat replaced gvisor/runsc/*/filter/*.go >> "$2"
    if [ "$3" = ./program ]; then test -f program/main.go || exit 1; fi
    exit ${GO_FAILS:-0} ;;
esac"""


def test_it_is_built_by_go_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "path" / "go", GO)
    monkeypatch.setenv("PATH", f"{tmp_path}/path", prepend=os.pathsep)
    module = tmp_path / "module"
    for package in gvisor_filters.PACKAGES:
        (module / package).mkdir(parents=True)
    monkeypatch.setenv("MODULE", str(module))
    printed = {str(package): f"package filter // {package.parent.name}\n" for package in gvisor_filters.PACKAGES}
    monkeypatch.setenv("PRINTED", json.dumps(printed))
    target = gvisor.built(tmp_path)
    monkeypatch.setenv("GO_FAILS", "1")
    with pytest.raises(Unavailable, match=r"node\.runsc"):
        local_gvisor.build(target, silent)
    assert list(target.parent.iterdir()) == []
    monkeypatch.setenv("GO_FAILS", "0")
    local_gvisor.build(target, silent)
    assert [path.name for path in target.parent.iterdir()] == ["runsc"]
    assert os.access(target, os.X_OK)
    package, replaced, *added = target.read_text().splitlines()
    assert package == "./program"
    assert replaced.startswith("-replace=gvisor.dev/gvisor=")
    assert added == ["package filter // boot", "package filter // fsgofer"]
    assert [path for path in module.rglob("*") if path.is_file()] == [], "Go's own copy stays as it is"
    monkeypatch.setenv("FILTERS_FAIL", "1")
    local_gvisor.build(target, silent)
    assert target.read_text().splitlines() == ["gvisor.dev/gvisor/runsc", "-dropreplace=gvisor.dev/gvisor"], "as it is"


@AS_ROOT
def test_one_that_does_not_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    bad = program(tmp_path / "bad", "echo broken; exit 1")
    with pytest.raises(FailedPrecondition, match="broken") as caught:
        local_gvisor.ensure(engines.at("oci:///o", settings(tmp_path)), settings(tmp_path, bad), silent)
    assert caught.value.state == "no_gvisor"


def test_docker_is_given_none(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="engine=oci"):
        local_gvisor.ensure(engines.at("unix:///d", settings(tmp_path)), settings(tmp_path), silent)
