"""The implementation of `shoal.actors.objects`: a bucket of any S3 service, or an S3 server of Shoal's own.

access.py        settings → how the storage is reached
keys.py          credentials, and the file that they are in
s3.py            the contract over boto3
failures.py      what an error of boto3's means, and which setting is at fault
server.py        the server of Shoal's own: rclone over a directory; started, found again, stopped
keeper.py        the head's side: starts the server when it is first needed, and again when it has died
state.py         what `shoal doctor` and `shoal status` tell of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.actors.objects import ObjectKeeper


def open_objects(settings: dict[str, Any], address: str) -> ObjectKeeper:
    """The keeper for `settings` (`Settings.to_dict()`) on the head, whose address in the cluster is `address`. Nothing
    is started or checked yet."""
    from shoal.cluster.objects.keeper import keeper_for
    from shoal.model.settings import Settings

    return keeper_for(Settings.from_dict(settings), address)
