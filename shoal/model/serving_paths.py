"""Where a node that serves the API keeps its sockets.

<run_dir>/<cluster>/gateway.sock         the gateway's control socket
<run_dir>/<cluster>/api/<id>.sock        a replica's public application
<run_dir>/<cluster>/api/<id>.internal    what the gateway alone asks of that replica
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shoal.model.errors import InvalidRequest
from shoal.model.sockets import LONGEST_PATH

_REPLICA = "0123abcd.internal.new"


@dataclass(frozen=True, slots=True)
class ServingPaths:
    """The paths of one cluster on one node."""

    run_dir: Path
    cluster: str

    @property
    def control(self) -> Path:
        """The gateway's control socket."""
        return self.run_dir / self.cluster / "gateway.sock"

    @property
    def replicas(self) -> Path:
        """The replicas' directory, 0700. It is there while the node serves the API."""
        return self.run_dir / self.cluster / "api"

    def check(self) -> None:
        """`InvalidRequest` where a socket's name would be too long."""
        if len(os.fsencode(self.replicas / _REPLICA)) > LONGEST_PATH:
            raise InvalidRequest(
                f"run_dir: {self.run_dir} is too long for the API's sockets; use a shorter one such as /run/shoal",
                field="run_dir",
            )
