"""What sandboxes inherit from their machine: CA bundle, proxy, package index. Each only if the operator enables it
(`Settings.host`).

Deciding is pure: `inherit` is given the environment and pip's configuration. `pip_config` reads the latter.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shoal.actors.engines.contract import Mount
from shoal.model.errors import FailedPrecondition
from shoal.model.settings import HostSettings

CA_TARGET = "/.shoal/ca.pem"

CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
"""Variables that programs read for a CA bundle. The first four also tell where the machine's own bundle is, in this
order."""

CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")

PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")

INDEX_OPTIONS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "trusted-host": "PIP_TRUSTED_HOST",
}


@dataclass(frozen=True, slots=True)
class InheritedSettings:
    """Environment variables (weaker than a sandbox's own) and mounts that every container of this node gets."""

    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()


def inherit(host: HostSettings, environ: Mapping[str, str], pip: Mapping[str, str]) -> InheritedSettings:
    """The settings to inherit. `pip`: pip's own settings by option name, such as `index-url` (see `pip_config`).

    Raises `FailedPrecondition` if the CA bundle is enabled and the machine has none. Passwords in the URL of an index
    or a proxy are passed on, as the operator asked for.
    """
    env: dict[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    if host.ca_bundle:
        mounts = (Mount(_ca_bundle(environ, pip), CA_TARGET),)
        env.update(dict.fromkeys(CA_VARIABLES, CA_TARGET))
    if host.proxy:
        env.update(_proxy(environ))
    if host.package_index:
        env.update(_package_index(environ, pip))
    return InheritedSettings(env, mounts)


def pip_config(timeout_s: float = 30.0) -> dict[str, str]:
    """Pip's settings from its files, by option name; empty without pip. Blocks: it runs pip."""
    try:
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_pip_config(listed.stdout) if listed.returncode == 0 else {}


def parse_pip_config(text: str) -> dict[str, str]:
    """What `pip config list` prints (`global.index-url='https://…'`), with `install.` before `global.`, and `:env:`
    left out."""
    found: dict[str, str] = {}
    rank: dict[str, int] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.strip().rpartition(".")
        strength = {"global": 1, "install": 2}.get(section, 0)
        if equals and strength and strength >= rank.get(option, 0):
            found[option], rank[option] = _unquote(value.strip()), strength
    return found


def _unquote(value: str) -> str:
    """Pip prints values with `repr`; one of several lines separates them by `\\n`."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return " ".join(value.replace("\\n", " ").split())


def _ca_bundle(environ: Mapping[str, str], pip: Mapping[str, str]) -> Path:
    named = [environ.get(name) for name in CA_VARIABLES[:4]]
    for path in (*named, pip.get("cert"), *CA_BUNDLES):
        if path and Path(path).is_file():
            return Path(path).resolve()
    raise FailedPrecondition(
        "host.ca_bundle: no CA bundle was found in the usual paths of this machine; "
        "install ca-certificates, set SSL_CERT_FILE, or set it to false"
    )


def _proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Both spellings, as programs read one or the other; if they differ, lower case wins, as in curl."""
    env: dict[str, str] = {}
    for name in PROXY_VARIABLES:
        value = environ.get(name) or environ.get(name.upper())
        if value:
            env[name] = env[name.upper()] = value
    return env


def _package_index(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    env: dict[str, str] = {}
    for option, variable in INDEX_OPTIONS.items():
        value = environ.get(variable) or pip.get(option)
        if value:
            env[variable] = value
    return env
