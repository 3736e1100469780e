"""The base image, `shoal/base`: this machine's Debian or Ubuntu with Python 3, pip, git, curl, less, procps
and CA certificates.

Built from the machine's own package sources with mmdebstrap, so that it works wherever `apt-get install` does, without
any image registry. The archive is kept in `cache`, named by its recipe: importing it into another engine takes a few
seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shoal.model.commands import run_whole
from shoal.model.errors import FailedPrecondition
from shoal.model.report import Report

REFERENCE = "shoal/base"

INCLUDE = (
    "ca-certificates",
    "curl",
    "git",
    "less",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "python-is-python3",
)

IMAGE_CHANGES = (
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV LANG=C.UTF-8",
    "ENV PIP_ROOT_USER_ACTION=ignore",
    "ENV PIP_DISABLE_PIP_VERSION_CHECK=1",
    "ENV PIP_NO_CACHE_DIR=1",
    "WORKDIR /",
)

PIP = """\
#!/bin/sh
# Runs pip. If that fails and no package index answers, says what the operator of the cluster can set.
/usr/bin/pip "$@"
code=$?
case "$code $1" in 0\\ *) exit 0 ;; *\\ install | *\\ download | *\\ wheel | *\\ index) ;; *) exit $code ;; esac
usual=$(/usr/bin/pip install --help | tr -d ' \\n' | grep -o '(defaulthttps://[^)]*' | head -n 1 | cut -c9-)
index=${PIP_INDEX_URL:-$usual}
python3 - "$index" <<'END' || cat >&2 <<HINT
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=10)
except urllib.error.HTTPError:
    pass  # it answers
except (OSError, ValueError):
    sys.exit(1)
END
shoal: no package index answers at $index from inside this sandbox.
shoal: a sandbox with network="none" has none. Else the cluster's operator can pass the machine's own settings on
shoal: (host.package_index, host.ca_bundle, host.proxy) and open a private index's address (network.allow).
HINT
exit $code
"""
"""`/usr/local/bin/pip`: pip itself only says that it found no version of the package."""

_NOT_NEEDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
)
_BUILD_S = 900.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What determines the image. `sources`: in apt's one-line form, one per line."""

    suite: str
    sources: str
    include: tuple[str, ...] = INCLUDE
    changes: tuple[str, ...] = IMAGE_CHANGES
    pip: str = PIP

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.astuple(self)).encode()).hexdigest()[:16]


def is_base(reference: str) -> bool:
    return reference.removesuffix(":latest") == REFERENCE


def environment() -> dict[str, str]:
    """The image's variables."""
    pairs = (change.removeprefix("ENV ").partition("=") for change in IMAGE_CHANGES if change.startswith("ENV "))
    return {name: value for name, _, value in pairs}


def recipe() -> Recipe:
    """The recipe for this machine; `FailedPrecondition` if it is neither Debian nor Ubuntu."""
    about = distribution()
    family, suite = about.get("ID", ""), about.get("VERSION_CODENAME", "")
    if family not in ("debian", "ubuntu") or not suite:
        raise FailedPrecondition(
            f"{REFERENCE} can only be built on Debian or Ubuntu, but this is {about.get('PRETTY_NAME', 'neither')}; "
            "name another image, such as SHOAL_SANDBOX__IMAGE=python:3.12"
        )
    sources = _sources(family, suite)
    if not sources:
        raise FailedPrecondition(
            f"apt has no package lists of {family} {suite} on this machine; run `apt-get update` as root"
        )
    return Recipe(suite, sources)


def build(recipe: Recipe, cache: Path, report: Report) -> Path:
    """The image's archive, from the cache or newly built. Needs `mmdebstrap`, and root or user namespaces."""
    archive = cache / f"base-{recipe.suite}-{recipe.digest}.tar"
    if archive.is_file():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with (
        report(f"Building {REFERENCE} from the packages of {recipe.suite}"),
        tempfile.TemporaryDirectory(dir=cache) as scratch,
    ):
        unfinished = Path(scratch) / "base.tar"
        sources = Path(scratch) / "sources.list"
        sources.write_text(recipe.sources)
        pip = Path(scratch) / "pip"
        pip.write_text(recipe.pip)
        _run(_mmdebstrap(recipe, unfinished, sources, pip))
        unfinished.replace(archive)
    return archive


def distribution() -> dict[str, str]:
    """This machine's `/etc/os-release`: `ID`, `VERSION_CODENAME`, `PRETTY_NAME`, …; empty if there is none."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _mmdebstrap(recipe: Recipe, archive: Path, sources: Path, pip: Path) -> list[str]:
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(recipe.include)}",
        "--dpkgopt=force-unsafe-io",  # only the archive must be durable
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_NEEDED),
        *(f"--aptopt={line}" for line in _network_options()),
        # pip may install into the sandbox's Python, which nothing else manages.
        '--customize-hook=rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
        *(
            f'--customize-hook=install -m 755 {shlex.quote(str(pip))} "$1"/usr/local/bin/{name}'
            for name in ("pip", "pip3")
        ),
        '--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/*',
        recipe.suite,
        str(archive),
        str(sources),
    ]


def _sources(family: str, suite: str) -> str:
    """The distribution's own sources from apt, with security updates, without third parties."""
    form = "$(ORIGIN)|$(CODENAME)|$(SIGNED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    listed = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    lines = set()
    for row in listed.splitlines():
        origin, codename, signed_by, uri, release, component = (row.split("|") + [""] * 6)[:6]
        if origin.lower() == family and codename.split("-")[0] == suite:
            # An inline key, rather than a file, is from the distribution's keyring.
            option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            lines.add(f"deb {option}{uri} {release} {component}\n")
    return "".join(sorted(lines))


def _network_options() -> list[str]:
    """The machine's apt options for proxies and CA bundles, which mmdebstrap does not read itself."""
    dumped = _run(["apt-config", "dump", "--no-empty", "Acquire::http", "Acquire::https"])
    wanted = ("Proxy", "CAInfo", "CAPath", "Verify")
    return [line for line in dumped.splitlines() if line.split(" ")[0].rpartition("::")[2].startswith(wanted)]


def _run(command: list[str]) -> str:
    """The command's output; `FailedPrecondition` with its last errors if it fails."""
    try:
        done = run_whole(command, timeout_s=_BUILD_S)
    except FileNotFoundError:
        raise FailedPrecondition(f"{command[0]} is missing on this machine") from None
    except subprocess.TimeoutExpired:
        raise FailedPrecondition(f"{command[0]} took longer than {_BUILD_S:g} s") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise FailedPrecondition(f"{command[0]} failed: {' | '.join(errors[-3:])[:600]}")
    return done.stdout
