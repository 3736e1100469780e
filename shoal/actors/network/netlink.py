"""What is asked of the kernel's network for each sandbox, by netlink: `ip` and `nft` would be a process each, of 2 to
4 ms, five times in a sandbox's life. Messages and attributes as in <linux/rtnetlink.h>, <linux/if_link.h> and
<linux/netfilter/nf_tables.h>. Functions block.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET: Final = 0x40000000

_HEADER, _ATTRIBUTE, _LINK = struct.Struct("=IHHII"), struct.Struct("=HH"), struct.Struct("=BxHiII")
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_ERROR: Final = 2
_NEW_LINK, _DELETE_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 17, 20, 24
_UP: Final = 1
_LOOPBACK: Final = 1  # its number, in each namespace
_NESTED: Final = 0x8000
_TIMEOUT_S: Final = 10

_NETFILTER: Final = 12
_BATCH_BEGIN, _BATCH_END, _NFTABLES, _NEW_ELEMENT = 16, 17, 10, 12
_BRIDGE_FAMILY: Final = 7


def add_pair(
    name: str, alias: str, mac: str, *, mtu: int, group: int, bridge: str, namespace: int, index_of: str = "eth0"
) -> None:
    """Makes a pair of interfaces: `name` on the bridge, up and kept from the others there, and `index_of` in a network
    namespace (a descriptor), with that MAC. `OSError`; then there may be some of it."""
    peer = _LINK.pack(0, 0, 0, 0, 0) + b"".join(
        (
            _text(3, index_of),
            _attribute(1, bytes.fromhex(mac.replace(":", ""))),
            _number(4, mtu),
            _number(28, namespace),
        )
    )
    pair = _nest(18, _text(1, "veth"), _nest(2, _attribute(1, peer)))
    made = _LINK.pack(0, 0, 0, 0, 0) + b"".join(
        (_text(3, name), _number(4, mtu), _number(27, group), _number(10, socket.if_nametoindex(bridge)), pair)
    )
    # Kept from the others before it is up, so that sandboxes never reach each other.
    apart = _nest(18, _text(4, "bridge"), _nest(5, _attribute(33, b"\1")))
    ready = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + _text(20, alias) + _no_ipv6_address() + apart
    up = _LINK.pack(0, 0, 0, _UP, _UP) + _text(3, name)
    _ask(
        socket.NETLINK_ROUTE,
        (_message(_NEW_LINK, _CREATE | _EXCLUSIVE, made), _message(_NEW_LINK, 0, ready), _message(_NEW_LINK, 0, up)),
    )


def set_address(namespace: int, device: str, address: IPv4Address, prefix: int, gateway: IPv4Address) -> None:
    """Gives an interface in a network namespace (a descriptor) its address and its default route. `OSError`."""
    link, index = _socket_in(namespace, device)
    with link:
        ready = _LINK.pack(0, 0, index, 0, 0) + _no_ipv6_address()
        up = _LINK.pack(0, 0, index, _UP, _UP)
        own = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
        own += _attribute(2, address.packed) + _attribute(1, address.packed)
        # Main table, set by an administrator, anywhere, unicast.
        route = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0)
        route += _attribute(5, gateway.packed) + _number(4, index)
        _exchange(
            link,
            (
                _message(_NEW_LINK, 0, ready),  # no IPv6 address is made up as it comes up
                _message(_NEW_LINK, 0, up),
                _message(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, own),
                _message(_NEW_ROUTE, _CREATE | _EXCLUSIVE, route),
            ),
        )


def enter_new_namespace() -> None:
    """Moves this thread, and no other, into a new network namespace, and brings up the loopback there. To be called on
    a thread that ends soon. `OSError`."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _ask(socket.NETLINK_ROUTE, (_message(_NEW_LINK, 0, _LINK.pack(0, 0, _LOOPBACK, _UP, _UP)),))


def remove_link(name: str) -> None:
    """Removes an interface, with its other end. Idempotent; `OSError`."""
    try:
        _ask(socket.NETLINK_ROUTE, (_message(_DELETE_LINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _text(3, name)),))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def add_elements(table: str, name: str, keys: Iterable[bytes]) -> None:
    """Adds elements to a set of a table for bridges. It is there for packets once this returns. `OSError`."""
    elements = (_nest(1, _nest(1, _attribute(1, key))) for key in keys)
    element = _filter_header(_BRIDGE_FAMILY) + _text(1, table) + _text(2, name) + _nest(3, *elements)
    _ask(
        _NETFILTER,
        (
            _message(_BATCH_BEGIN, 0, _filter_header(0, _NFTABLES), answered=False),
            _message(_NFTABLES << 8 | _NEW_ELEMENT, _CREATE, element),
            _message(_BATCH_END, 0, _filter_header(0, _NFTABLES), answered=False),
        ),
        answers=1,
    )


def _socket_in(namespace: int, device: str) -> tuple[socket.socket, int]:
    """A socket to the routing of a network namespace, and the number that an interface has there."""

    def enter() -> tuple[socket.socket, int]:
        if _libc.setns(namespace, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return _open(socket.NETLINK_ROUTE), socket.if_nametoindex(device)

    return elsewhere(enter)


def elsewhere(body: Callable[[], T]) -> T:
    """Runs `body` in a thread of its own, which ends: it may leave this process's network namespace, in which all other
    work is done. Raises its `OSError`."""
    made: list[T] = []
    failed: list[OSError] = []

    def run() -> None:
        try:
            made.append(body())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="shoal-namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _ask(family: int, messages: Sequence[bytes], answers: int | None = None) -> None:
    with _open(family) as link:
        _exchange(link, messages, answers)


def _open(family: int) -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
    link.settimeout(_TIMEOUT_S)
    return link


def _exchange(link: socket.socket, messages: Sequence[bytes], answers: int | None = None) -> None:
    """Sends messages, which the kernel takes in turn, and waits for its answers; the first error is raised."""
    link.send(b"".join(messages))
    left, failed = len(messages) if answers is None else answers, 0
    while left > 0:
        data, offset = link.recv(1 << 16), 0
        while offset < len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if kind == _ERROR:
                failed = failed or -struct.unpack_from("=i", data, offset + _HEADER.size)[0]
                left -= 1
            offset += (length + 3) & ~3
    if failed:
        raise OSError(failed, os.strerror(failed))


def _message(kind: int, flags: int, body: bytes, *, answered: bool = True) -> bytes:
    flags |= _REQUEST | (_ACK if answered else 0)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _filter_header(family: int, resource: int = 0) -> bytes:
    return struct.pack("=BB", family, 0) + struct.pack(">H", resource)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _nest(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _no_ipv6_address() -> bytes:
    """None is made up for the interface. Nothing, for a kernel without IPv6."""
    has_ipv6 = Path("/proc/sys/net/ipv6").exists()
    return _nest(26, _nest(socket.AF_INET6, _attribute(8, b"\1"))) if has_ipv6 else b""
