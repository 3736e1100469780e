"""The layers and images of a node, as files: each layer unpacked once, read-only and shared.

store.py         `LayerStore`, what the engine uses
maker.py         makes layers and images, all or nothing
taking.py        makes an image of what a container has changed, which is frozen for one step only
ahead.py         has the next one ready
layer_dirs.py    layers by diff id: `layers/<hex>/fs`, and short links to them
image_files.py   images by digest (the sha256 of the OCI configuration) and the names that lead to them
holds.py         which container uses which image
drafts.py        what is being made or removed, so that a crash leaves nothing half-made in sight
config_blob.py   pure: the OCI configuration and what Shoal takes from it
eviction.py      pure: which images go when the disk is full
sources.py       registries, archives of `docker save`, directories in the OCI layout
ecr.py           credentials for AWS's registries
program.py       runs `shoal-layers`, which reads archives and talks to registries
digests.py, files.py, locks.py    small helpers

On the disk, below the root:

    layers/<hex>/{fs/, layer.json, split.zst, on-disk}   l/<short> -> ../layers/<hex>/fs
    images/<hex>/{config.json, image.json}      refs/<hash of the name>
    holds/<key>    tmp/<draft>/                 lock
"""

from shoal.actors.engines.oci.layers.sources import Credentials
from shoal.actors.engines.oci.layers.store import Blob, LayerStore, Manifest
from shoal.actors.engines.oci.layers.taking import Changed

__all__ = ["Blob", "Changed", "Credentials", "LayerStore", "Manifest"]
