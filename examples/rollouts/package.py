"""The task: a real package with its own test suite, as its authors published it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Its suite needs the standard library only, has no build step and takes about two seconds: 817 tests, doctests among
# them.
PIN = "more-itertools==10.5.0"
MODULE = "more_itertools/more.py"
TESTS = ("python3", "-m", "unittest")

DOWNLOAD_TIMEOUT = 180.0  # seconds


class FetchError(Exception):
    """The package could not be downloaded; the message is pip's."""


@dataclass(frozen=True, slots=True)
class Package:
    """An unpacked source distribution.

    `module` is the path, below `root`, of the file to be patched; `tests` runs the suite in `root`.
    """

    name: str
    root: Path
    module: str
    tests: tuple[str, ...]

    @property
    def source(self) -> str:
        """The module's text as published."""
        return (self.root / self.module).read_text("utf-8")


def fetch(directory: Path) -> Package:
    """Downloads and unpacks the package below `directory`.

    Uses pip, so this machine's index, proxy and CA settings count.

    Raises `FetchError`.
    """
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet")
    _call(*pip, "--no-deps", "--no-binary", ":all:", "--dest", str(directory), PIN)
    archives = sorted(directory.glob("*.tar.gz"))
    if len(archives) != 1:
        raise FetchError(f"{PIN}: expected one source distribution, got {[path.name for path in archives]}")
    root = directory / "source"
    root.mkdir()
    _call("tar", "--extract", "--gzip", "--strip-components=1", f"--file={archives[0]}", f"--directory={root}")
    if not (root / MODULE).is_file():
        raise FetchError(f"{PIN} holds no {MODULE}")
    return Package(PIN, root, MODULE, TESTS)


def _call(*argv: str) -> None:
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT)
    except subprocess.CalledProcessError as error:
        raise FetchError(f"{' '.join(argv)} failed:\n{error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{' '.join(argv)} took more than {DOWNLOAD_TIMEOUT:g} s") from None
