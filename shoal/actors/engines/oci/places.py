"""Where the direct engine of a machine keeps what it has, and its address, which is that place: `oci://<directory>`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shoal.model.settings import Settings

_SCHEME: Final = "oci://"


def address_of(root: Path) -> str:
    return f"{_SCHEME}{root}"


def root_at(address: str) -> Path | None:
    """The place that an address names; None for another engine's."""
    return Path(address.removeprefix(_SCHEME)) if address.startswith(_SCHEME) else None


def root_of(settings: Settings) -> Path:
    """The place of the engine with these settings."""
    named = root_at(settings.engine_address or "")
    return settings.state_dir / "oci" if named is None else named
