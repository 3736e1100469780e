"""Assigns addresses to sandboxes. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from shoal.model.errors import FailedPrecondition, Unavailable


class AddressPool:
    """The addresses of `network`, except the first, which is the bridge's. A freed address is reused as late as
    possible: by then the kernel has forgotten its old connections."""

    def __init__(self, network: IPv4Network) -> None:
        self.network = network
        self.gateway = network.network_address + 1
        self._first = int(self.gateway) + 1
        self._last = int(network.broadcast_address) - 1
        self._next = self._first
        self._holders: dict[int, str] = {}
        self._held: dict[str, int] = {}

    def holders(self) -> dict[str, str]:
        """Key → address."""
        return {key: str(IPv4Address(number)) for key, number in self._held.items()}

    def of(self, key: str) -> str | None:
        """The address that `key` has."""
        number = self._held.get(key)
        return None if number is None else str(IPv4Address(number))

    def take(self, key: str) -> str:
        """A free address for `key`, or the one that it has. `Unavailable` if all are taken."""
        had = self.of(key)
        if had is not None:
            return had
        size = self._last - self._first + 1
        if len(self._holders) >= size:
            raise Unavailable(
                f"all {size} addresses of {self.network} are taken; set a larger network.subnet, or end sandboxes"
            )
        number = self._next
        while number in self._holders:
            number = self._after(number)
        self._next = self._after(number)
        self._note(key, number)
        return str(IPv4Address(number))

    def claim(self, key: str, address: str) -> None:
        """Notes that `key` has `address`. `FailedPrecondition` if another has it or it lies outside the network."""
        number = int(IPv4Address(address))
        if not self._first <= number <= self._last:
            raise FailedPrecondition(f"{address} is no address for a sandbox in {self.network}", state="outside")
        if self._holders.get(number, key) != key:
            raise FailedPrecondition(f"{address} belongs to {self._holders[number]} already", state="taken")
        self.free(key)
        self._note(key, number)

    def free(self, key: str) -> None:
        number = self._held.pop(key, None)
        if number is not None:
            del self._holders[number]

    def clear(self) -> None:
        """Frees all addresses."""
        self._holders.clear()
        self._held.clear()

    def _note(self, key: str, number: int) -> None:
        self._holders[number] = key
        self._held[key] = number

    def _after(self, number: int) -> int:
        return self._first if number >= self._last else number + 1
