"""The implementation of `shoal.actors.volumes`: JuiceFS file systems, by its program `juicefs`.

keeper.py     makes, measures and removes them
metadata.py   where their metadata is: a schema each in the cluster's PostgreSQL, or a SQLite file each on the head
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.actors.volumes import VolumeKeeper


def open_volumes(settings: dict[str, Any]) -> VolumeKeeper:
    """The keeper for `settings` (`Settings.to_dict()`), on the head. Nothing is started or checked yet."""
    from shoal.cluster.volumes.keeper import JuiceKeeper
    from shoal.cluster.volumes.metadata import metadata_for
    from shoal.model.settings import Settings

    return JuiceKeeper(metadata_for(Settings.from_dict(settings)))
