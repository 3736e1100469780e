"""The shell lines of what `Image` does by commands: installing packages."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from shoal.model.errors import InvalidRequest
from shoal.model.recipe import Run

SHELL = ("/bin/sh", "-c")
ROOT = "0"
"""Packages are installed as root, whoever the image's user is."""

_APT_CA = '${SSL_CERT_FILE:+-o "Acquire::https::CAInfo=$SSL_CERT_FILE"}'
"""apt does not look at the variable that all others do."""

_UV_INDEX = '[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"'
"""uv has a variable of its own for what pip's says."""


def shell(line: str, title: str = "", user: str | None = None) -> Run:
    """A line for the shell."""
    return Run((*SHELL, line), user=user, title=title)


def apt(packages: Sequence[str]) -> Run:
    """Installs packages of Debian or Ubuntu, without what they recommend, and leaves no lists behind."""
    line = f"{_apt_install(_quoted(packages))} && rm -rf /var/lib/apt/lists/*"
    return shell(line, _title("apt_install", packages), ROOT)


def pip(packages: Sequence[str], options: Sequence[str]) -> Run:
    """Installs packages by the pip that is first in the path."""
    line = f"pip install --no-cache-dir {_quoted([*options, *packages])}"
    return shell(line, _title("pip_install", packages), ROOT)


def pip_requirements(text: str, options: Sequence[str], name: str) -> Run:
    """Installs what a requirements file lists."""
    for line in text.splitlines():
        if line.strip().startswith(("-r", "-c", "--requirement", "--constraint", "-e", "--editable")):
            raise InvalidRequest(
                f"path: {name}: {line.strip()[:80]!r} refers to other files, which are not in the image; list the "
                "packages, or add the files and use run_commands",
                field="path",
            )
    end = "END_OF_REQUIREMENTS"
    line = (
        f"cat >/tmp/requirements.txt <<'{end}'\n{text.rstrip()}\n{end}\n"
        f"pip install --no-cache-dir {_quoted(options)} -r /tmp/requirements.txt && rm /tmp/requirements.txt"
    )
    return shell(line, f"pip_install_from_requirements({name!r})", ROOT)


def uv_pip(packages: Sequence[str], options: Sequence[str]) -> Run:
    """Installs packages by uv, which is installed first where it is missing."""
    line = (
        "command -v uv >/dev/null || pip install --no-cache-dir -q uv || exit 1; "
        f"{_UV_INDEX}; uv pip install --system --no-cache {_quoted([*options, *packages])}"
    )
    return shell(line, _title("uv_pip_install", packages), ROOT)


def python(version: str) -> Run:
    """Makes sure that `python3` is of that version, from the distribution's own packages."""
    quoted = shlex.quote(version)
    line = (
        f"""have() {{ [ "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)" = {quoted} ]; }}\n"""
        "have && exit 0\n"
        f"{_apt_install(f'python{version} python{version}-venv')} && "
        f"ln -sf /usr/bin/python{version} /usr/local/bin/python3 && "
        f"ln -sf /usr/bin/python{version} /usr/local/bin/python && rm -rf /var/lib/apt/lists/* && have && exit 0\n"
        f"echo 'this distribution has no Python {version}: use Image.from_registry with an image that has' >&2; exit 1"
    )
    return shell(line, f"debian_slim(python={version!r})", ROOT)


def _apt_install(packages: str) -> str:
    return (
        f"apt-get {_APT_CA} -qq update && DEBIAN_FRONTEND=noninteractive "
        f"apt-get {_APT_CA} -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends {packages}"
    )


def _quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _title(what: str, words: Sequence[str]) -> str:
    return f"{what}({', '.join(map(repr, words))})"[:200]
