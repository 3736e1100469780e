"""The relay of a node: it carries exec, files and streams between clients and the agents in this node's containers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from shoal.actors.node.program import IDLE_EXIT_S, Program
from shoal.model import grants
from shoal.model.errors import Unavailable
from shoal.model.private_directory import make_private_directory


class Relay(Program):
    """The node's relay. `root` holds a link to each container's directory; `listen_ip` is this node's address in the
    cluster; `tls`: whether one that is started speaks TLS; `log_format`: as the setting."""

    def __init__(
        self,
        binary: Path,
        root: Path,
        listen_ip: str,
        port_file: Path,
        log: Path,
        secret: bytes,
        port: int = 0,
        tls: bool = False,
        log_format: str = "text",
    ) -> None:
        super().__init__(binary, "relay", "relay", root.parent / "relay.sock", log)
        self._root = root
        self._listen_ip = listen_ip
        self._port_file = port_file
        self._secret = secret
        self._port = port
        self._tls = tls
        self._log_format = log_format
        self.address = ""
        self.fingerprint = ""

    @property
    def endpoint(self) -> str:
        """How clients reach it."""
        return grants.endpoint(self.address, self.fingerprint)

    async def open(self) -> None:
        """Adopts the relay that runs, or starts one; watches it from then on."""
        await asyncio.to_thread(make_private_directory, self._root)
        await super().open()

    async def close(self) -> None:
        """Stops the relay. Idempotent."""
        await super().close()
        self._port_file.unlink(missing_ok=True)

    async def start(self) -> None:
        """Starts one on the port that the last one had, so that clients who know its address find it again."""
        port = self._port or _remembered_port(self._port_file)
        for candidate in dict.fromkeys((port, self._port)):
            configuration = {
                "root": str(self._root),
                "listen": f"{self._listen_ip}:{candidate}",
                "secret": self._secret.hex(),
                "control": str(self.control),
                "idle_exit_s": IDLE_EXIT_S,
                "tls": self._tls,
                "log_format": self._log_format,
            }
            if await self.launch(configuration) is not None:
                return
        raise Unavailable(f"the relay does not start; see {self.log}")

    async def connected(self, info: dict[str, Any]) -> None:
        """Takes note of the address, also for the next relay, and of its certificate."""
        self.address = str(info["address"])
        self.fingerprint = str(info.get("fingerprint", ""))  # a relay of an older Shoal that was adopted has none
        self._port_file.parent.mkdir(parents=True, exist_ok=True)
        self._port_file.write_text(self.address.rsplit(":", 1)[1])

    async def add(self, key: str, pid: int = 0, started: int = 0) -> None:
        """Listens for the agent of container `key`, whose directory exists. Idempotent.

        `pid`, `started`: its first process on this node, once that is known; from then on nobody else is taken for the
        agent.
        """
        await self.ask({"op": "add", "key": key, "pid": pid, "started": started})

    async def remove(self, key: str) -> None:
        """Cuts the container off: its listener and all its connections. Idempotent."""
        await self.ask({"op": "remove", "key": key})

    async def expose(self, key: str, port: int, private: bool, listen: int, sandbox_id: str) -> str:
        """The address (`host:port`) on this node that leads to a port in the container.

        Idempotent for the same `private`.

        `listen`: the node's port, 0: any. Raises `AlreadyExists` (it is taken), `NotFound`, `QuotaExceeded`.
        """
        request = {"op": "expose", "key": key, "port": port, "private": private, "listen": listen}
        return str((await self.ask({**request, "sandbox": sandbox_id}))["ok"]["address"])

    async def unexpose(self, key: str, port: int) -> None:
        """Closes the node's port for a port in the container, and its connections. Idempotent."""
        await self.ask({"op": "unexpose", "key": key, "port": port})

    async def exposed(self) -> list[tuple[str, int]]:
        """(key, port) of every port that is exposed."""
        info = await self.ask({"op": "info"})  # a relay of an older Shoal that was adopted exposes nothing
        return [(str(port["key"]), int(port["port"])) for port in info.get("exposed", ())]


def _remembered_port(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
