"""Which hosts are this machine and nothing else."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.model.settings import ApiSettings


def is_loopback(host: str) -> bool:
    """Whether a name or address, as it stands in a URL or alone, can mean nothing but this machine."""
    host = host.removeprefix("[").removesuffix("]").removesuffix(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_open(api: ApiSettings) -> None:
    """`InvalidRequest` where an API that asks for no token would be open to others than this machine."""
    if not api.auth and not is_loopback(api.host):
        raise InvalidRequest(
            f"api.auth: it may be off only on a loopback address, and api.host is {api.host!r}; leave it on, or listen on 127.0.0.1",
            field="api.auth",
        )
