"""A client on a cluster in memory."""

from __future__ import annotations

from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from tests.fakes.cluster import FakeTransport


class ClientLab:
    """A client, the fake behind it, and sandboxes of it."""

    def __init__(self) -> None:
        self.fake = FakeTransport()
        self.client = Client(self.fake)

    def sandbox(self, *command: str, name: str | None = None) -> Sandbox:
        return Sandbox.create(*command, name=name, client=self.client)
