"""Loopback hosts."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.model.settings import ApiSettings


def is_loopback(host: str) -> bool:
    """Whether a name or address, alone or as in a URL, always means this machine."""
    host = host.removeprefix("[").removesuffix("]").removesuffix(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_open(api: ApiSettings) -> None:
    """`InvalidRequest` if an API without authentication would be open to other machines."""
    if not api.auth and not is_loopback(api.host):
        raise InvalidRequest(
            f"api.auth: off needs a loopback address, but api.host is {api.host!r}; leave it on, or use 127.0.0.1",
            field="api.auth",
        )
