"""A machine's own settings, which there take the place of the cluster's.

The cluster has one set of settings, the head's. What concerns one machine alone (directories, the engine, the bridge)
each machine that joins brings along, in a file. `shoal join` starts Ray with `SHOAL_MACHINE` naming that file; Ray's
workers inherit the variable, so the node actor finds it. The head has none: the cluster's settings are its own.

Standard library only: every node actor reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.model.cluster_file import write_private
from shoal.model.errors import FailedPrecondition

VARIABLE = "SHOAL_MACHINE"

OWN_SETTINGS = (
    "state_dir",
    "run_dir",
    "engine",
    "engine_address",
    "agent",
    "node.relay_port",
    "node.pids",
    "node.seccomp_profile",
    "node.runsc",
    "node.runsc_platform",
    "network.bridge",
    "network.subnet",
    "network.dns",
)
"""The settings that each machine has of its own."""


@dataclass(frozen=True, slots=True)
class MachineFile:
    """What a machine that has joined is called, and its own settings (nested, JSON-ready). `name` is the label of its
    containers: with several nodes on one machine, each has another.
    """

    name: str
    settings: Mapping[str, Any]

    def over(self, cluster: Mapping[str, Any]) -> dict[str, Any]:
        """The cluster's settings with this machine's own in their place."""
        return {
            name: {**value, **self.settings[name]} if isinstance(value, dict) else self.settings[name]
            for name, value in cluster.items()
            if name in self.settings
        } | {name: value for name, value in cluster.items() if name not in self.settings}

    def write(self, path: Path) -> None:
        write_private(path, json.dumps({"name": self.name, "settings": self.settings}, indent=2).encode() + b"\n")


def own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings` (`Settings.to_dict()`) that are the machine's own."""
    own: dict[str, Any] = {}
    for dotted in OWN_SETTINGS:
        section, _, name = dotted.rpartition(".")
        if section:
            own.setdefault(section, {})[name] = settings[section][name]
        else:
            own[name] = settings[name]
    return own


def read(environ: Mapping[str, str] = os.environ) -> MachineFile | None:
    """The file that the environment names; None without one, `FailedPrecondition` if it cannot be read."""
    named = environ.get(VARIABLE)
    if not named:
        return None
    try:
        data = json.loads(Path(named).read_text("utf-8"))
        return MachineFile(str(data["name"]), dict(data["settings"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{VARIABLE}: {named} cannot be read ({error!r}); run `shoal join` on that machine again"
        ) from None
