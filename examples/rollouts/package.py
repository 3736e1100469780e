"""The task: a real package with its own test suite, as its authors published it."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import shoal
from shoal import Volume

# Its suite needs the standard library only, has no build step and takes about two seconds: 817 tests, doctests among
# them.
PIN = "more-itertools==10.5.0"
MODULE = "more_itertools/more.py"
VOLUME = "rollout-packages"
TESTS = ("python3", "-m", "unittest")

DOWNLOAD_TIMEOUT = 180.0  # seconds


class FetchError(Exception):
    """The package could not be downloaded; the message is pip's."""


@dataclass(frozen=True, slots=True)
class Package:
    """An unpacked source distribution, in the directory `name` of a volume.

    `module` is the path, below that, of the file to be patched; `source` is its text as published; `tests` runs the
    suite there.
    """

    name: str
    volume: Volume
    module: str
    source: str
    tests: tuple[str, ...]


def load(client: shoal.Client) -> Package:
    """The package, from the volume in which the first run has kept it.

    Raises `FetchError`.
    """
    volume = Volume.from_name(VOLUME, create_if_missing=True, client=client)
    if not volume.files.exists(PIN):
        with tempfile.TemporaryDirectory(prefix="rollouts-") as directory:
            started = f"{PIN}.{secrets.token_hex(4)}"
            volume.files.put(fetch(Path(directory)), started)
        with suppress(shoal.AlreadyExists):  # by another run meanwhile
            volume.files.move(started, PIN)
        volume.commit()
    return Package(PIN, volume, MODULE, volume.files.read_text(f"{PIN}/{MODULE}"), TESTS)


def fetch(directory: Path) -> Path:
    """Downloads and unpacks the package below `directory`; returns where it is.

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
    return root


def _call(*argv: str) -> None:
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT)
    except subprocess.CalledProcessError as error:
        raise FetchError(f"{' '.join(argv)} failed:\n{error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{' '.join(argv)} took more than {DOWNLOAD_TIMEOUT:g} s") from None
