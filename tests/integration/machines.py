"""Other machines for a test: a network, a mount and a host name of their own, on a LAN that the node is part of.

Processes, control groups and the disk are shared with the node, so each has directories, an engine and a bridge of its
own. The LAN's addresses look public, so that nothing but Shoal's own rules keeps sandboxes from them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import cluster_engine, free_subnet, test_cache
from tests.integration.netlab import command

_SPACE = """
set -e
mount -t tmpfs none /mnt
mkdir /mnt/cgroup
mount --rbind /sys/fs/cgroup /mnt/cgroup
mount -t sysfs none /sys
mount --rbind /mnt/cgroup /sys/fs/cgroup
hostname "$1"
ip link set lo up
echo ready
exec sleep infinity
"""
"""`/sys/class/net` shows the network of whoever mounts it."""

_TRANSLATED = (
    "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; "
    "add rule ip t c oifname eth0 masquerade"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine. `pid`: the process that holds its namespaces; `link`: the node's end of its cable."""

    name: str
    address: str
    pid: int
    link: str
    directory: Path
    environ: dict[str, str]

    def argv(self, *arguments: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--", *arguments]

    def start(self, *arguments: str, stdin: str = "") -> subprocess.Popen[str]:
        """Starts a program there, which reads `stdin`."""
        process = subprocess.Popen(
            self.argv(*arguments),
            env={**os.environ, **self.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program there."""
        with self.start(*arguments, stdin=stdin) as process:
            output, _ = process.communicate(timeout=300)
        assert not check or process.returncode == 0, f"{arguments}: {output}"
        return subprocess.CompletedProcess(arguments, process.returncode, output, "")

    def hide_behind(self, router: Machine) -> None:
        """From now on it has only an address of a private network, which `router` translates into its own."""
        hidden = [*router.argv("ip"), "link", "add", "eth1", "type", "veth", "peer", "name", "eth1"]
        command(*hidden, "netns", f"/proc/{self.pid}/ns/net")
        self.run("ip", "link", "del", "eth0")
        self.run("ip", "addr", "add", "192.168.77.2/24", "dev", "eth1")
        self.run("ip", "link", "set", "eth1", "up")
        self.run("ip", "route", "add", "default", "via", "192.168.77.1")
        router.run("ip", "addr", "add", "192.168.77.1/24", "dev", "eth1")
        router.run("ip", "link", "set", "eth1", "up")
        router.run("nft", _TRANSLATED)
        router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    @contextmanager
    def vpn(self, node: str, own: str) -> Iterator[None]:
        """A private network of the node, at the address `node`, and this machine, at `own`."""
        end = f"v{self.link}"
        command("ip", "link", "add", end, "type", "veth", "peer", "name", "vpn", "netns", str(self.pid))
        try:
            for run, address, link in ((command, node, end), (self.run, own, "vpn")):
                run("ip", "addr", "add", f"{address}/30", "dev", link)
                run("ip", "link", "set", link, "up")
            yield
        finally:
            command("ip", "link", "del", end)

    def unplug(self) -> None:
        """As in a power cut: nobody hears of it any more, not even that a connection is closed."""
        command("ip", "link", "set", self.link, "down")


@dataclass(frozen=True, slots=True)
class Lan:
    """`address`: the node's own on it."""

    bridge: str
    address: str
    prefix: str

    @contextmanager
    def machine(self, number: int) -> Iterator[Machine]:
        """One with the LAN's address of that number. At its end, whatever still runs there is killed."""
        tag = f"{self.bridge}{number}"
        name, link, address = f"{tag}-host", tag, f"{self.prefix}.{number}"
        directory = Path(tempfile.mkdtemp(prefix="shoal-m", dir="/tmp"))
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--propagation", "private", "sh", "-c", _SPACE, "sh", name],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            holder.stdout.close()
            space = f"/proc/{holder.pid}/ns/net"
            command("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            command("ip", "link", "set", link, "master", self.bridge, "up")
            inside = ["nsenter", f"--net={space}", "ip"]
            command(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
            command(*inside, "link", "set", "eth0", "up")
            command(*inside, "route", "add", "default", "via", self.address)
            state = directory / "s"
            state.mkdir()
            (state / "cache").symlink_to(test_cache())
            environ = {
                "SHOAL_STATE_DIR": str(state),
                "SHOAL_RUN_DIR": str(directory / "r"),
                "SHOAL_ENGINE": cluster_engine(),
                "SHOAL_NETWORK__BRIDGE": "shoal0",
                "SHOAL_NETWORK__SUBNET": str(free_subnet()),
            }
            if cluster_engine() == "docker":
                environ["SHOAL_ENGINE_ADDRESS"] = f"unix://{directory}/r/engine.sock"
            yield Machine(name, address, holder.pid, link, directory, environ)
        finally:
            for pid in _those_in(holder.pid):
                os.kill(pid, signal.SIGKILL)
            holder.kill()
            holder.wait()
            subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def machines(self, *numbers: int) -> Iterator[list[Machine]]:
        with ExitStack() as stack:
            yield [stack.enter_context(self.machine(number)) for number in numbers]


@contextmanager
def lan(prefix: str = "203.0.113") -> Iterator[Lan]:
    """A LAN whose first address is the node's."""
    bridge = f"lan{secrets.token_hex(2)}"
    command("ip", "link", "add", bridge, "type", "bridge")
    try:
        command("ip", "addr", "add", f"{prefix}.1/24", "dev", bridge)
        command("ip", "link", "set", bridge, "up")
        yield Lan(bridge, f"{prefix}.1", prefix)
    finally:
        command("ip", "link", "del", bridge)


def processes_of(machine: Machine) -> list[int]:
    """The processes that are still on a machine, but for the one that holds its namespaces."""
    return _those_in(machine.pid)


def _those_in(holder: int) -> list[int]:
    space = os.readlink(f"/proc/{holder}/ns/net")
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != holder and os.readlink(entry / "ns" / "net") == space:
                found.append(int(entry.name))
        except OSError:
            continue  # gone, or a kernel thread
    return found
