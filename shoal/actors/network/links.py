"""The bridge, through `ip`, and the sandboxes' interfaces, by netlink. The kernel is the only record: after a restart
the state is read back from it."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from shoal.actors.network import netlink
from shoal.actors.network.commands import in_thread, must, run
from shoal.actors.network.pins import group, mac
from shoal.model.errors import FailedPrecondition, InvalidRequest, NotFound

_SYSCTL = Path("/proc/sys/net")
_DEFAULT_MTU = 1500
_EXEC_S, _PAUSE_S = 0.5, 0.002


@dataclass(frozen=True, slots=True)
class Port:
    """A sandbox's interface on the node's side: its name and its alias."""

    name: str
    key: str
    address: str


@functools.lru_cache(1024)  # a life asks for it six times
def port_name(key: str) -> str:
    """The interface's name on the node's side: at most 15 characters, the kernel's limit; always the same for a key."""
    return "sh" + base64.b32encode(hashlib.sha256(key.encode()).digest()[:8]).decode("ascii").lower().rstrip("=")


def exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


async def check_bridge(bridge: str, subnet: IPv4Network, owner: str) -> None:
    """Checks, without a change, that the bridge may be created or is ours. `FailedPrecondition` if the name belongs to
    somebody else, `InvalidRequest` (field `network.subnet`) if the node already has a route into the subnet."""
    link = await _bridge(bridge)
    if link:
        await _check_owner(bridge, link, _mark(owner))
    await _check_subnet(subnet, bridge)


async def ensure_bridge(bridge: str, gateway: IPv4Address, subnet: IPv4Network, owner: str) -> bool:
    """Makes sure of the bridge: its address, up, without IPv6, and forwarding on. Returns whether anything was
    missing."""
    repaired = await asyncio.to_thread(_set_sysctl, "ipv4/ip_forward", "1")
    link, steps = await _bridge(bridge), []
    if not link:
        # A fixed address: else it takes the lowest of its ports', which changes as they come and go.
        steps.append(f"link add {bridge} address {mac(gateway)} type bridge mcast_snooping 0")
    if link.get("ifalias") != _mark(owner):
        steps.append(f'link set {bridge} alias "{_mark(owner)}"')
    wanted = (str(gateway), subnet.prefixlen)
    addresses = [(a.get("local"), a.get("prefixlen")) for a in link.get("addr_info", ())]
    steps += [f"addr del {local}/{prefix} dev {bridge}" for local, prefix in addresses if (local, prefix) != wanted]
    if wanted not in addresses:
        steps.append(f"addr add {gateway}/{subnet.prefixlen} dev {bridge}")
    mtu = await uplink_mtu()
    if "UP" not in link.get("flags", ()) or link.get("mtu") != mtu:
        steps.append(f"link set {bridge} mtu {mtu} addrgenmode none up")
    if steps:
        await _batch(steps)
    repaired |= await asyncio.to_thread(_set_sysctl, f"ipv6/conf/{bridge}/disable_ipv6", "1")
    return bool(steps) or repaired


async def remove_bridge(bridge: str) -> None:
    """Removes the bridge and all interfaces on it. Idempotent."""
    if not exists(bridge):
        return
    names = [port["ifname"] for port in await _json("ip", "link", "show", "master", bridge)]
    await remove_links([*names, bridge])


async def remove_links(names: Iterable[str]) -> None:
    steps = [f"link del {name}" for name in names if exists(name)]
    if steps:
        # `-force` goes on if an interface has gone meanwhile, as it does with its container.
        await run("ip", "-force", "-batch", "-", given="\n".join(steps) + "\n")


async def ports(bridge: str) -> list[Port]:
    """The sandboxes' interfaces on the bridge, by their aliases."""
    found = []
    for link in await _json("ip", "link", "show", "master", bridge):
        key, _, address = str(link.get("ifalias", "")).partition(" ")
        if key and address and link["ifname"] == port_name(key):
            found.append(Port(link["ifname"], key, address))
    return found


async def connect(port: Port, holder: int | Path, bridge: str, pool: tuple[IPv4Address, IPv4Network]) -> None:
    """Creates a pair of interfaces: one on the bridge, the other as `eth0` in the network namespace of `holder` (a pid,
    or a file that pins one), with address and default route. `NotFound` if the holder is gone."""
    await in_thread("connect a sandbox to its network", lambda: _connect(port, holder, bridge, pool))


def _connect(port: Port, holder: int | Path, bridge: str, pool: tuple[IPv4Address, IPv4Network]) -> None:
    gateway, subnet = pool
    address = IPv4Address(port.address)
    # Use the descriptor throughout: the pid may be reused meanwhile.
    space = _open_namespace(holder)
    try:
        netlink.add_pair(
            port.name,
            f"{port.key} {port.address}",
            mac(address),
            mtu=_mtu(bridge),
            group=group(bridge),
            bridge=bridge,
            namespace=space,
        )
        netlink.set_address(space, "eth0", address, subnet.prefixlen, gateway)
    finally:
        os.close(space)


async def disconnect(key: str) -> None:
    """Removes a sandbox's interfaces. Idempotent."""
    await in_thread("take a sandbox from its network", lambda: netlink.remove_link(port_name(key)))


async def own_addresses() -> set[str]:
    """Every IPv4 address of this node."""
    return {
        info["local"]
        for link in await _json("ip", "-4", "addr", "show")
        for info in link.get("addr_info", ())
        if "local" in info
    }


async def uplink_mtu() -> int:
    """The largest packet of the interface that leads to the internet: larger ones would be lost on the way."""
    for route in await _json("ip", "-4", "route", "show", "default"):
        device = route.get("dev")
        if device and exists(device):
            return min(_DEFAULT_MTU, await asyncio.to_thread(_mtu, device))
    return _DEFAULT_MTU


def _mark(owner: str) -> str:
    return f"shoal {owner}"


async def _bridge(bridge: str) -> dict[str, Any]:
    """The kernel's description of the bridge; empty if there is none."""
    if not exists(bridge):
        return {}
    found = await _json("ip", "-d", "-4", "addr", "show", "dev", bridge)
    return found[0] if found else {}


async def _check_subnet(subnet: IPv4Network, bridge: str) -> None:
    for route in await _json("ip", "-4", "route", "show"):
        there = route.get("dst", "default")
        if there == "default" or route.get("dev") == bridge:
            continue
        if IPv4Network(there, strict=False).overlaps(subnet):
            raise InvalidRequest(
                f"network.subnet: {subnet} overlaps {there}, which this node reaches through {route.get('dev')}; "
                "set network.subnet to a free private network",
                field="network.subnet",
            )


async def _check_owner(bridge: str, link: dict[str, Any], mine: str) -> None:
    if link.get("linkinfo", {}).get("info_kind") != "bridge":
        raise FailedPrecondition(
            f"network.bridge: there is an interface {bridge} that is no bridge; set another name", state="taken"
        )
    theirs = link.get("ifalias")
    # Without sandboxes on it, it was left behind by a cluster that did not clean up.
    if theirs != mine and await _json("ip", "link", "show", "master", bridge):
        raise FailedPrecondition(
            f"network.bridge: {bridge} is in use by {theirs or 'somebody else'}; "
            "set network.bridge and network.subnet to others, "
            f"or remove it with `ip link del {bridge}`",
            state="taken",
        )


async def _batch(steps: Iterable[str]) -> None:
    await must("ip", "-batch", "-", given="\n".join(steps) + "\n")


async def _json(program: str, *arguments: str) -> list[dict[str, Any]]:
    output = await must(program, "-j", *arguments)
    parsed = json.loads(output) if output.strip() else []
    return [entry for entry in parsed if entry]


def _open_namespace(holder: int | Path) -> int:
    """A descriptor of the network namespace of `holder`."""
    named = f"process {holder}" if isinstance(holder, int) else str(holder)
    path = Path(f"/proc/{holder}/ns/net") if isinstance(holder, int) else holder
    deadline = time.monotonic() + _EXEC_S
    while True:
        try:
            space = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            break
        except (FileNotFoundError, ProcessLookupError) as error:
            # While one of its threads executes a program, as an agent does at its start, a process has none.
            if not isinstance(holder, int) or not path.parent.exists() or time.monotonic() > deadline:
                raise NotFound(f"{named} is gone, and its network with it") from error
            time.sleep(_PAUSE_S)
        except PermissionError as error:
            raise FailedPrecondition(
                f"the network of {named} may not be opened; run the node as root, "
                'or create sandboxes with network="none"',
                state="not root",
            ) from error
    # A container has its own namespace. If this is the node's, the pid was reused by another process, and we would
    # change the node itself.
    if holder == 0 or os.fstat(space).st_ino == Path("/proc/self/ns/net").stat().st_ino:
        os.close(space)
        raise NotFound(f"{named} is none of a container: it shares the node's network")
    return space


def _set_sysctl(name: str, value: str) -> bool:
    """Sets a kernel setting; returns whether it changed. One that this kernel lacks needs none."""
    file = _SYSCTL / name
    if not file.exists() or file.read_text().strip() == value:
        return False
    file.write_text(value)
    return True


def _mtu(device: str) -> int:
    return int(Path("/sys/class/net", device, "mtu").read_text())
