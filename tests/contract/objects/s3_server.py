"""The real server of Shoal's own, and a proxy before it that fails as S3 services do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shoal.cluster.objects.access import S3Access
from shoal.cluster.objects.server import ObjectServer


@contextmanager
def served(state_dir: Path) -> Iterator[tuple[ObjectServer, S3Access]]:
    """A server that runs until the end."""
    server = ObjectServer(state_dir)
    access = server.ensure("127.0.0.1")
    try:
        yield server, access
    finally:
        server.stop()


class CuttingProxy:
    """Passes connections on to a server; `cut_after`: the bytes of an answer after which it cuts one, once each."""

    def __init__(self, access: S3Access) -> None:
        assert access.endpoint is not None
        host, _, port = access.endpoint.removeprefix("http://").rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.access = replace(access, endpoint=f"http://127.0.0.1:{self._listener.getsockname()[1]}", timeout_s=2.0)
        self.cut_after: list[int] = []
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._upstream) as server:
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            passed = 0
            try:
                while piece := server.recv(65536):
                    client.sendall(piece)
                    passed += len(piece)
                    if self.cut_after and passed >= self.cut_after[0]:
                        self.cut_after.pop(0)
                        self.cuts += 1
                        break
            except OSError:
                pass
            for each in (client, server):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
    except OSError:
        pass
