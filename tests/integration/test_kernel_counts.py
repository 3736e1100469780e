"""One sandbox takes all that it can get of what the kernel counts for the whole machine; others have enough left."""

from __future__ import annotations

import platform
import subprocess

import pytest

import shoal

pytestmark = pytest.mark.engine

IO_SETUP = {"x86_64": 206, "aarch64": 0}[platform.machine()]
TAKE = """
import ctypes, os, sys, time
c = ctypes.CDLL(None)
most = int(sys.argv[1])

class Event(ctypes.Structure):
    _fields_ = [('value', ctypes.c_long), ('signal', ctypes.c_int), ('how', ctypes.c_int), ('rest', ctypes.c_long * 6)]

def taken(make, limit):
    for number in range(min(limit, most)):
        try:
            if make() < 0:
                return number
        except OSError:
            return number
    return min(limit, most)

event = Event(0, 34, 0)
inotify = taken(lambda: c.inotify_init1(0), 300)
terminals = taken(lambda: os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY), 2000)
contexts = taken(lambda: c.syscall(int(sys.argv[2]), 1024, ctypes.byref(ctypes.c_ulong())), 100)
timers = taken(lambda: c.timer_create(1, ctypes.byref(event), ctypes.byref(ctypes.c_ulong())), 1000000)
print(inotify, terminals, contexts, timers, flush=True)
time.sleep(60 if most > 100 else 0)
"""


def test_one_sandbox_does_not_take_what_all_need(cluster: object) -> None:
    with shoal.Sandbox.create(memory=(128, 512)) as greedy, shoal.Sandbox.create() as other:
        taking = greedy.exec("python3", "-c", TAKE, "1000000", str(IO_SETUP))
        inotify, terminals, contexts, timers = map(int, taking.stdout.readline().split())
        assert (inotify, contexts) == (300, 100)
        assert terminals <= 256
        assert timers > 1000
        left = other.run(["python3", "-c", TAKE, "10", str(IO_SETUP)], check=True).stdout.split()
        assert left[:3] == ["10", "10", "10"]
        with shoal.Sandbox.create(memory=(64, 301)) as late:  # another size, so none that was started before
            assert late.run("echo hello").stdout == "hello\n"
        machine = subprocess.run(
            ["python3", "-c", TAKE, "10", str(IO_SETUP)], capture_output=True, text=True, timeout=30, check=True
        )
        assert machine.stdout.split() == ["10", "10", "10", "10"]
        taking.kill()
