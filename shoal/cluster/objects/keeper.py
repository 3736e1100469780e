"""The head's side: the bucket of the settings, or the server of Shoal's own."""

from __future__ import annotations

import logging

from shoal.actors.objects import ObjectAccess, ObjectKeeper
from shoal.cluster.objects.access import access_by_settings
from shoal.cluster.objects.server import ObjectServer, answers
from shoal.model.settings import Settings

log = logging.getLogger("shoal.objects")

_UNANSWERED = 3
"""How often in a row it may fail to answer before it is started anew: it may only be slow."""


def keeper_for(settings: Settings, address: str) -> ObjectKeeper:
    """The keeper for these settings, on the head at `address`."""
    if settings.objects.bucket is not None:
        return BucketKeeper(access_by_settings(settings.objects))
    return ServerKeeper(ObjectServer(settings.state_dir), address, settings.objects.port)


class BucketKeeper(ObjectKeeper):
    """A bucket of a service that others keep."""

    def __init__(self, access: ObjectAccess) -> None:
        self._access = access

    def access(self) -> ObjectAccess:
        return self._access

    def tend(self) -> None:
        pass


class ServerKeeper(ObjectKeeper):
    """The server of Shoal's own. `host`: where it listens."""

    def __init__(self, server: ObjectServer, host: str, port: int = 0) -> None:
        self._server = server
        self._host = host
        self._port = port
        self._unanswered = 0

    def access(self) -> ObjectAccess:
        return self._server.ensure(self._host, self._port)

    def tend(self) -> None:
        if not self._server.wanted:
            return
        running = self._server.running()
        if running is not None and answers(running.address):
            self._unanswered = 0
            return
        self._unanswered += 1
        if running is None or self._unanswered >= _UNANSWERED:
            log.warning("the object storage %s; it is started anew", "has died" if running is None else "hangs")
            self._unanswered = 0
            self._server.ensure(self._host, self._port)
