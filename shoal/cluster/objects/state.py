"""What `shoal doctor` and `shoal status` tell of the object storage."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from typing import Any

from shoal.actors.objects import ObjectAccess
from shoal.cluster.objects.access import access_by_settings
from shoal.cluster.objects.server import ObjectServer, answers, program
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.settings import Settings


@dataclass(frozen=True, slots=True)
class ObjectsState:
    """`kind`: `bucket` or `server` (Shoal's own); `state`: of a server `idle` (not needed yet), `running` or `died`, of
    a bucket `configured`."""

    kind: str
    state: str
    where: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(settings: Settings) -> ObjectsState:
    """What there is on this machine, the head. Asks no bucket."""
    named = settings.objects
    if named.bucket is not None:
        return ObjectsState("bucket", "configured", f"{named.endpoint or 'AWS'}, bucket {named.bucket}")
    server = ObjectServer(settings.state_dir)
    running = server.running()
    if running is not None and answers(running.address):
        return ObjectsState("server", "running", f"http://{running.address}")
    return ObjectsState("server", "died" if server.wanted else "idle", str(server.directory))


def try_out(settings: Settings) -> str:
    """Writes, reads and deletes an object; raises what went wrong. Returns what was found. A server that is not needed
    yet is not started for this."""
    found = look(settings)
    if found.kind == "bucket":
        _round(access_by_settings(settings.objects))
        return f"{found.where}: written, read and deleted"
    if found.state == "died":
        raise Unavailable(f"the server of {found.where} has died")
    if found.state == "idle":
        return f"a server in {found.where} by {program()}, started when something is first stored"
    server = ObjectServer(settings.state_dir)
    running = server.running()
    if running is None:
        raise Unavailable(f"the server of {server.directory} has died")
    _round(server.access(running.address))
    return f"{found.where}: written, read and deleted"


def _round(access: ObjectAccess) -> None:
    store = access.connect()
    key, content = f"doctor/{secrets.token_hex(8)}", secrets.token_bytes(64)
    try:
        store.put(key, content)
        try:
            if b"".join(store.read(key)) != content:
                raise ShoalError("an object was read otherwise than it was written")
        finally:
            store.delete([key])
        if store.head(key) is not None:
            raise ShoalError("an object is still there after it was deleted")
    finally:
        store.close()
