"""What code inside may ask of the kernel: tried from inside, call by call; and that programs run all the same."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines.contract import Container
from tests.contract.engines.labs import MiB, RealLab

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

PROBE = Path(__file__).with_name("call_probe.py").read_text()
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = "1", "2", "10", "16"
REFUSED = {"EPERM", "ENOSYS"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe has the numbers of x86-64")
async def test_what_reaches_past_a_sandbox_is_refused(kernel_lab: RealLab) -> None:
    container = await kernel_lab.start()
    code, said = await kernel_lab.run(container, "python3", "-c", PROBE)
    assert code == 0, said
    found: dict[str, Any] = json.loads(said)
    assert {f for f, answer in found["families"].items() if answer == "ok"} == {
        AF_UNIX,
        AF_INET,
        AF_INET6,
        AF_NETLINK,
    }
    assert {f for f, answer in found["pairs"].items() if answer == "ok"} == {AF_UNIX}
    others = [answer for family, answer in found["families"].items() if int(family) not in (1, 2, 10, 16)]
    assert set(others) == {"EPERM"}
    assert {p for p, answer in found["netlink"].items() if answer == "ok"} == {"0"}
    assert {p for p, answer in found["protocols"].items() if answer != "EPERM"} == {"0", "1", "6", "17", "58"}
    assert found["above 32 bits"] == "EPERM"
    for what in ("refused", "32 bits", "unshared", "cloned"):
        assert {call: answer for call, answer in found[what].items() if answer not in REFUSED} == {}, what
    assert {call: answer for call, answer in found["absent"].items() if answer != "ENOSYS"} == {}
    assert set(found["requests"].values()) == {"EPERM"}
    assert found["harmless request"] != "EPERM"
    assert found["plain"] == ["ok", "ok", "ok"]
    assert set(found["personalities"]) == {"EPERM"}


PROGRAMS = {
    "threads and processes": (
        "import threading, subprocess, multiprocessing as m\n"
        "t = [threading.Thread(target=print) for _ in range(8)]; [x.start() for x in t]; [x.join() for x in t]\n"
        "assert subprocess.run(['true']).returncode == 0\n"
        "with m.get_context('spawn').Pool(2) as p: assert p.map(abs, [-1, 2]) == [1, 2]\n"
    ),
    "shared memory and semaphores": (
        "from multiprocessing import shared_memory as s, Semaphore\n"
        "b = s.SharedMemory(create=True, size=4096); b.buf[0] = 1; b.close(); b.unlink(); Semaphore(1).acquire()\n"
    ),
    "sockets of every kind that there is": (
        "import socket\n"
        "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname())\n"
        "c, _ = a.accept(); c.send(b'x'); assert b.recv(1) == b'x'; socket.socketpair()\n"
        "assert [n for _, n in socket.if_nameindex()] == ['lo']\n"
        "socket.socket(type=socket.SOCK_DGRAM); socket.socket(socket.AF_INET6)\n"
        "u = socket.socket(socket.AF_UNIX); u.bind('/tmp/u'); u.listen()\n"
        "socket.getaddrinfo('localhost', 80)\n"
    ),
    "an event loop": (
        "import asyncio\n"
        "async def main():\n"
        "    p = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)\n"
        "    assert await p.communicate(b'x') == (b'x', None)\n"
        "    await asyncio.sleep(0.01)\n"
        "asyncio.run(main())\n"
    ),
    "kernel objects in files": (
        "import ctypes, os, select, signal\n"
        "c = ctypes.CDLL(None); n = c.inotify_init1(0); assert n >= 0 and c.inotify_add_watch(n, b'/tmp', 256) > 0\n"
        "open('/tmp/noticed', 'w').close(); assert os.read(n, 4096)\n"
        "assert c.eventfd(0, 0) >= 0 and c.timerfd_create(1, 0) >= 0\n"
        "assert c.signalfd(-1, (ctypes.c_char * 128)(), 0) >= 0\n"
        "f = os.memfd_create('x'); os.write(f, b'x'); select.epoll().register(n); os.pidfd_open(os.getpid())\n"
        "r, w = os.pipe(); os.splice(f, w, 1, offset_src=0); assert os.read(r, 1) == b'x'\n"
        "signal.setitimer(signal.ITIMER_REAL, 60); os.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(1)\n"
        "os.setxattr('/tmp/noticed', 'user.a', b'b'); os.mkfifo('/tmp/fifo'); os.statvfs('/tmp')\n"
        "import fcntl; fcntl.flock(f, fcntl.LOCK_EX); fcntl.ioctl(r, 0x541B, b'    ')\n"
    ),
    "a terminal": "import pty; assert pty.spawn(['stty', '-a']) == 0\n",
    "a debugger's calls": (
        "import ctypes, os\n"
        "c = ctypes.CDLL(None, use_errno=True); child = os.fork()\n"
        "if child == 0: c.ptrace(0, 0, 0, 0); os.execvp('true', ['true'])\n"
        "assert os.WIFSTOPPED(os.waitpid(child, 0)[1]); assert c.ptrace(7, child, 0, 0) == 0\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    ),
}
TOOLS = (
    "git init -q /tmp/r && cd /tmp/r && echo x > f && git add f && git -c user.name=a -c user.email=a@b commit -qm x",
    "python3 -m venv --without-pip /tmp/v && /tmp/v/bin/python -c 'import ssl, sqlite3'",
    "pip list",
    "tar -C /usr/share -cf - doc | tar -C /tmp -xf - && cp -a /tmp/doc /tmp/doc2 && rm -r /tmp/doc",
    "apt-cache stats && dpkg --verify base-files",
    "if command -v gcc; then echo 'int main(){return 0;}' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a; fi",
    "su nobody -s /bin/sh -c 'id -un' | grep -qx nobody",
    "timeout 5 sort -R /etc/passwd | xargs -P 4 -n 1 echo | wc -l",
)


async def test_programs_run(real_lab: RealLab) -> None:
    container = await real_lab.start(memory=512 * MiB, pids=128)
    for what, program in PROGRAMS.items():
        await assert_runs(real_lab, container, "a program for " + what, "python3", "-c", program)
    for line in TOOLS:
        await assert_runs(real_lab, container, line, "sh", "-ec", line)


async def assert_runs(lab: RealLab, container: Container, what: str, *argv: str) -> None:
    code, said = await lab.run(container, *argv)
    assert code == 0, (what, said)
