"""What only a real engine can show: enforced limits, and what code inside may."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from shoal.actors.engines.cgroup_parent import most_pids
from shoal.actors.engines.cgroups import cgroup_of
from shoal.actors.engines.contract import ContainerState, Mount
from shoal.model.errors import Internal, InvalidRequest
from tests.contract.engines.labs import MiB, RealLab

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

ALLOWED = {
    "give files away": "import os; open('/f', 'w').close(); os.chown('/f', 1234, 1234)",
    "write where another may": (
        "import os; os.makedirs('/d', 0o700); os.chown('/d', 1234, 1234);"
        " open('/d/f', 'w').close(); os.chmod('/d', 0o711)"
    ),
    "become another": "import os; os.setgroups([]); os.setgid(1234); os.setuid(1234); assert os.getuid() == 1234",
    "end another's process": (
        "import subprocess as s; p = s.Popen(['sleep', '60'], user=1234, group=1234); p.kill(); assert p.wait() == -9"
    ),
    "serve on port 80": "import socket; socket.create_server(('127.0.0.1', 80))",
    "find its own name": "import socket; assert socket.gethostbyname(socket.gethostname()).startswith('127.')",
}
DENIED = {
    "make devices": "import os, stat; os.mknod('/dev/x', stat.S_IFBLK | 0o600, os.makedev(8, 0))",
    "forge packets": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "change its root": "import os; os.chroot('/tmp')",
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(b'x', b'/mnt', b'tmpfs', 0, None) == 0",
    "rename the machine": "import socket; socket.sethostname('x')",
    "write its agent": "open('/.shoal/agent', 'r+b')",
    "write its link": "open('/.shoal/run/x', 'w')",
    "write the kernel's settings": "open('/proc/sys/kernel/core_pattern', 'w').write('|x')",
    "read the kernel's memory": "assert open('/proc/kcore', 'rb').read(1)",
    "lower its priority to be killed": (
        "import os; os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')"
    ),
    "make a user namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
}

HARMLESS_IN_GVISOR = {"lower its priority to be killed", "make a user namespace"}
"""Its kernel keeps these to itself."""


async def test_all_containers_together_are_bounded_below_what_the_kernel_has(real_lab: RealLab) -> None:
    containers = [await real_lab.start() for _ in range(2)]
    groups = [cgroup_of(container.pid, name=await real_lab.id_of(container)) for container in containers]
    (above,) = {group.pids.parent for group in groups if group is not None}
    bound = int(read(above / "pids.max"))
    assert bound == most_pids() < int(read(Path("/proc/sys/kernel/pid_max")))
    assert int(read(above / "pids.current")) >= 2


async def test_what_root_may_inside(real_lab: RealLab) -> None:
    container = await real_lab.start()
    for what, program in ALLOWED.items():
        code, said = await real_lab.run(container, "python3", "-c", program)
        assert code == 0, (what, said)


async def test_what_nobody_may_inside(real_lab: RealLab) -> None:
    container = await real_lab.start()
    for what, program in DENIED.items():
        if real_lab.own_kernel and what in HARMLESS_IN_GVISOR:
            continue
        code, said = await real_lab.run(container, "python3", "-c", program)
        assert code == 1, what
        assert "Error" in said, what


async def test_seccomp_and_no_new_privileges_hold_for_its_first_process(kernel_lab: RealLab) -> None:
    container = await kernel_lab.start()
    lines = (await asyncio.to_thread(Path(f"/proc/{container.pid}/status").read_text)).splitlines()
    status = dict(line.split(":", 1) for line in lines)
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    kept = int(status["CapBnd"], 16)
    # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE
    assert kept == sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 10))


async def test_a_fork_bomb_stays_within_its_limit(real_lab: RealLab) -> None:
    container = await real_lab.start(pids=32)
    bomb = "import os, time\ntry:\n    while os.fork() or True: pass\nexcept BlockingIOError: print('enough')\n"
    _, said = await real_lab.run(container, "timeout", "-s", "KILL", "20", "python3", "-c", bomb)
    assert "enough" in said
    # On this kernel each process in gVisor has two, beside gVisor's own.
    assert (await real_lab.engine.usage(container.key)).pids <= (192 if real_lab.own_kernel else 32)
    await asyncio.wait_for(real_lab.engine.remove(container.key), 15)


async def test_cpu_is_limited(real_lab: RealLab) -> None:
    container = await real_lab.start(cpu=0.2)
    burn = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    before, began = await real_lab.engine.usage(container.key), time.monotonic()
    code, said = await real_lab.run(container, "python3", "-c", burn)
    assert code == 0, said
    used = (await real_lab.engine.usage(container.key)).cpu_s - before.cpu_s
    assert used < 0.2 * (time.monotonic() - began) + 0.15


async def test_memory_has_no_swap_behind_it(kernel_lab: RealLab) -> None:
    container = await kernel_lab.start(memory=64 * MiB)
    code, _ = await kernel_lab.run(container, "python3", "-c", "x = b'x' * (100 << 20)")
    assert code == 137
    assert (await kernel_lab.engine.get(container.key)).state is ContainerState.RUNNING


async def test_mounts_are_seen_and_read_only(real_lab: RealLab, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("hello")
    (tmp_path / "out").mkdir()
    mounts = (Mount(tmp_path / "in", "/in"), Mount(tmp_path / "out", "/out", read_only=False))
    container = await real_lab.start(mounts=mounts, env={"GREETING": "a b=c"}, hostname="castle")
    code, said = await real_lab.run(
        container, "sh", "-c", 'cat /in/file; hostname; echo "$GREETING"; echo x > /out/file'
    )
    assert (code, said.split("\n")) == (0, ["hellocastle", "a b=c", ""])
    assert (tmp_path / "out" / "file").read_text() == "x\n"
    code, said = await real_lab.run(container, "sh", "-c", "echo x > /in/file")
    assert code != 0
    assert "Read-only" in said


@pytest.mark.parametrize("wrong", ["missing", "not executable"])
async def test_an_agent_that_does_not_run_is_told_and_leaves_nothing(
    real_lab: RealLab, tmp_path: Path, wrong: str
) -> None:
    broken = tmp_path / "agent"
    if wrong == "not executable":
        broken.write_text("x")
    with pytest.raises(Internal, match=r"agent"):
        await real_lab.start(agent=broken)
    assert await real_lab.remains() == []


async def test_an_agent_that_ends_at_once_is_never_taken_for_a_running_one(real_lab: RealLab, tmp_path: Path) -> None:
    short = tmp_path / "agent"
    await asyncio.to_thread(shutil.copy, "/bin/true", short)
    try:
        container = await real_lab.start(agent=short)
    except Internal:
        # It ended before the start had looked at it.
        assert await real_lab.remains() == []
        return
    for _ in range(100):
        if (await real_lab.engine.get(container.key)).state is ContainerState.EXITED:
            return
        await asyncio.sleep(0.05)
    pytest.fail("it ended, and counts as running")


async def test_more_cores_than_the_machine_has(real_lab: RealLab) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await real_lab.start(cpu=10_000.0)
    assert caught.value.field == "cpu"


def read(file: Path) -> str:
    return file.read_text()
