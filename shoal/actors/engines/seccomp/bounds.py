"""Which system calls a sandbox may make with some arguments only, and why."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_WORD: Final = 0xFFFF_FFFF

# Families of sockets that a network namespace, or the file system, bounds.
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_IP_PROTOCOLS: Final = (0, 1, 6, 17, 58)
"""The default of a type, ICMP, TCP, UDP and ICMPv6. Others load modules of the kernel, and SMC (256) leaves the
namespace."""
_NETLINK_ROUTE, _NETLINK_AUDIT = 0, 9
"""`ROUTE` is about interfaces, addresses and routes of their own namespace, and `getifaddrs` reads it. Others tell
events of the whole machine (`KOBJECT_UEVENT`), or are no use without capabilities."""

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
_NEW_NAMESPACES: Final = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000
_NEW_TIME: Final = 0x80
"""CLONE_NEWTIME; for `clone` these bits are the signal at its end."""

_PERSONALITIES: Final = (0x0, 0x8, 0x2_0000, 0x2_0008, _WORD)
"""Linux, 32-bit Linux, both with a version 2.6 for old programs, and the question which it is."""

REFUSED_REQUESTS: Final = (
    0x5412,  # TIOCSTI types into a terminal that others read
    0x541C,  # TIOCLINUX does the same by the console's selection
    0x5423,  # TIOCSETD changes the line discipline, which loads modules of the kernel
    0x5820,  # FS_IOC_FSSETXATTR moves a file to another project, and so to another disk quota
    0x6602,  # FS_IOC_SETFLAGS, of both sizes, takes a directory's new files out of its project
)
"""Refused `ioctl`s, by the 16 bits that hold type and number: the bits above are a size and a direction, which differ
between 32 and 64 bits."""
_REQUEST_BITS: Final = 16

FAULT_SIGNALS: Final = (4, 5, 7, 8, 11, 16, 31)
"""SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSTKFLT and SIGSYS. A program, as the agent is one, can't tell them from
faults of its own if the sender made up where they come from. By `kill` they say who sent them."""
_SIGNAL_BITS: Final = 7
_F_SETSIG: Final = 10
"""`fcntl` with it chooses the signal that tells the owner of a descriptor, whoever that is, of input there."""
_COMMAND_BITS: Final = 11

_PTRACE_SINCE: Final = (4, 8)
"""Before, a traced process could change its system call after the filter had seen it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Argument `index`, under `mask` if there is one, equals `value`.

    Without a mask all 64 bits count: the kernel would ignore what stands above an `int`.
    """

    index: int
    value: int
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """The calls are allowed where all conditions hold, or answered with `error`. Several bounds of one call: where any
    of them holds."""

    calls: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    error: int | None = None


def bounds(kernel: tuple[int, int]) -> Iterator[Bound]:
    """All bounds on a kernel of this version."""
    sockets = ("socket", "socketpair")
    yield Bound(sockets, (Condition(0, _AF_UNIX),))
    for family in (_AF_INET, _AF_INET6):
        for protocol in _IP_PROTOCOLS:
            yield Bound(("socket",), (Condition(0, family), Condition(2, protocol)))
    yield Bound(("socket",), (Condition(0, _AF_NETLINK), Condition(2, _NETLINK_ROUTE)))
    # `su` and `sudo` end at any other error, and go on where the kernel seems to have no audit.
    audit = (Condition(0, _AF_NETLINK), Condition(2, _NETLINK_AUDIT))
    yield Bound(("socket",), audit, error=errno.EPROTONOSUPPORT)
    yield Bound(("clone",), (Condition(0, 0, _NEW_NAMESPACES),))
    yield Bound(("unshare",), (Condition(0, 0, _NEW_NAMESPACES | _NEW_TIME),))
    for personality in _PERSONALITIES:
        yield Bound(("personality",), (Condition(0, personality),))
    for value, mask in all_but(REFUSED_REQUESTS, _REQUEST_BITS):
        yield Bound(("ioctl",), (Condition(1, value, mask),))
    yield Bound(("pidfd_send_signal",), (Condition(2, 0),))
    for value, mask in all_but(FAULT_SIGNALS, _SIGNAL_BITS):
        yield Bound(("rt_sigqueueinfo", "pidfd_send_signal"), (Condition(1, value, mask),))
        yield Bound(("rt_tgsigqueueinfo",), (Condition(2, value, mask),))
        yield Bound(("fcntl", "fcntl64"), (Condition(1, _F_SETSIG), Condition(2, value, mask)))
    for value, mask in all_but((_F_SETSIG,), _COMMAND_BITS):
        yield Bound(("fcntl", "fcntl64"), (Condition(1, value, mask),))
    if kernel >= _PTRACE_SINCE:
        yield Bound(("ptrace",))


def all_but(values: tuple[int, ...], bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of value and mask that together match every number but those whose lowest `bits` are one of `values`.

    A filter cannot say "allow all but these": its rules are joined by "or", and one that allows without a condition
    wins over all others.
    """
    left = [(values, 0, 0)]
    while left:
        inside, value, mask = left.pop()
        if not inside:
            yield value, mask
            continue
        if mask == (1 << bits) - 1:
            continue
        bit = _most_telling_bit(inside, mask, bits)
        left += [(tuple(v for v in inside if v & bit == half), value | half, mask | bit) for half in (0, bit)]


def _most_telling_bit(values: tuple[int, ...], mask: int, bits: int) -> int:
    """The free bit that all `values` share, or else one that parts them best. Shared bits give the shortest list."""
    free = [1 << n for n in range(bits) if not mask >> n & 1]
    return max(free, key=lambda bit: abs(2 * sum(1 for v in values if v & bit) - len(values)))
