"""Layers of a layer store, made of directories."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.oci.layers import Changed, LayerStore


def add_upper(
    store: LayerStore,
    base: str,
    upper: Path,
    config: ImageConfig | None = None,
    reference: str | None = None,
    *,
    exclude: tuple[str, ...] = (),
) -> ImageInfo:
    """An image of what a container whose overlay writes to `upper` would have changed, on top of the image `base`."""
    return store.take_upper(nullcontext(Changed(base, upper, exclude, config)), reference)
