"""A bound on how many requests with wrong tokens each client address may send to one replica.

Beyond it the answer is 429, and the controller is no longer asked whether such a token exists. A valid token is never
turned away, however many wrong ones come from the same address: see `auth.verify`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from ipaddress import IPv6Address, ip_address

from cachetools import LRUCache

BURST = 50
"""So many at once: a test suite of a client's tries a few dozen wrong tokens."""

PER_S = 1.0
"""So many again each second."""

_MOST_ADDRESSES = 10_000
_IPV6_NETWORK = 64  # a client chooses the rest


class FailureBound:
    """What each address has left. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: MutableMapping[str, tuple[float, float]] = LRUCache(_MOST_ADDRESSES)

    def wait_s(self, address: str | None) -> float:
        """Seconds until the address may fail again; 0 if it may now."""
        return max(0.0, (1.0 - self._now(_client(address))) / PER_S)

    def note(self, address: str | None) -> float:
        """Counts a failure. Returns 0, or the seconds to wait if it was one too many; those make the wait no longer."""
        client = _client(address)
        left = self._now(client)
        if left >= 1.0:
            self._left[client] = left - 1.0, self._clock()
            return 0.0
        return (1.0 - left) / PER_S

    def _now(self, client: str) -> float:
        left, at = self._left.get(client, (float(BURST), 0.0))
        return min(float(BURST), left + (self._clock() - at) * PER_S)


def _client(address: str | None) -> str:
    """Whom an address counts for: an IPv6 client for all of its network. All of unknown address are one."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return address or ""
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> (128 - _IPV6_NETWORK) << (128 - _IPV6_NETWORK)))
    return str(parsed)
