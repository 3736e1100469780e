"""What a container reads of its own size."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shoal.actors.node import size_files, size_texts
from shoal.actors.node.size_files import SizeFiles

X86 = """\
processor\t: {0}
model name\t: Some Processor 7
physical id\t: 1
siblings\t: 64
core id\t\t: 9
cpu cores\t: 32
apicid\t\t: 77
initial apicid\t: 77
cpuid level\t: 32
flags\t\t: fpu vme
power management:
"""
CPUINFO = "\n".join(X86.format(number) for number in range(64))
ARM = "".join(f"processor\t: {number}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n\n" for number in range(4))
STAT = (
    "cpu  10 0 10 980 0 0 0 0 0 0\ncpu0 5 0 5 490 0 0 0 0 0 0\ncpu1 5 0 5 490 0 0 0 0 0 0\n"
    "intr 12345 6 7\nctxt 99\nbtime 1700000000\nprocesses 4242\nprocs_running 3\nsoftirq 1 2\n"
)


@pytest.mark.parametrize(
    ("limit", "machine", "seen"), [(0.1, 8, 1), (1.0, 8, 1), (1.5, 8, 2), (8.0, 8, 8), (9.0, 8, 8), (1.0, 1, 1)]
)
def test_processors_are_the_limit_rounded_up_and_within_the_machine(limit: float, machine: int, seen: int) -> None:
    assert size_texts.visible_cpus(limit, machine) == seen


def test_cpuinfo_has_the_first_processors_as_one_package() -> None:
    seen = size_texts.cpuinfo(CPUINFO, 2)
    assert re.findall(r"^(\S.*?)\t+: (.*)$", seen, re.MULTILINE)[:9] == [
        ("processor", "0"),
        ("model name", "Some Processor 7"),
        ("physical id", "0"),
        ("siblings", "2"),
        ("core id", "0"),
        ("cpu cores", "2"),
        ("apicid", "0"),
        ("initial apicid", "0"),
        ("cpuid level", "32"),
    ]
    assert re.findall(r"^processor\t: (\d+)$", seen, re.MULTILINE) == ["0", "1"]
    assert size_texts.cpuinfo(ARM, 1) == "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n\n"


def test_stat_tells_nothing_of_the_machine_but_its_boot() -> None:
    rows = [line.split() for line in size_texts.stat(STAT, 1).splitlines()]
    assert [row[0] for row in rows if row[0].startswith("cpu")] == ["cpu", "cpu0"]
    assert rows[0][4] == rows[1][4] == "500"
    assert ["btime", "1700000000"] in rows
    assert {"12345", "99", "4242"}.isdisjoint(word for row in rows for word in row)


def test_meminfo_is_the_limit() -> None:
    rows = dict(re.findall(r"^(\S+): +(\d+) kB$", size_texts.meminfo(1024), re.MULTILINE))
    assert {rows[name] for name in ("MemTotal", "MemFree", "MemAvailable")} == {"1048576"}
    assert {rows[name] for name in ("SwapTotal", "Buffers", "Cached", "Slab", "Shmem")} == {"0"}


def test_the_directory_of_processors() -> None:
    files = dict(size_texts.cpu_directory(40))
    assert files["online"] == files["possible"] == files["cpu3/topology/package_cpus_list"] == "0-39\n"
    assert files["cpu39/topology/core_cpus"] == "00000080,00000000\n"
    assert files["cpu39/topology/core_id"] == "39\n"
    assert dict(size_texts.cpu_directory(1))["online"] == "0\n"


def test_files_are_made_once_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_files, "_MOST_SIZES", 2)
    files = SizeFiles(tmp_path)
    first = {mount.target: mount.source for mount in files.mounts(0.5, 512)}
    assert {"/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/swaps"} <= set(first)
    assert first["/proc/meminfo"].read_text() == size_texts.meminfo(512)
    made = first["/proc/cpuinfo"].stat().st_ino
    again = {mount.target: mount.source for mount in SizeFiles(tmp_path).mounts(1.0, 512)}
    assert again == first
    assert again["/proc/cpuinfo"].stat().st_ino == made
    for memory in (513, 514, 515):
        files.mounts(1.0, memory)
    assert sorted(path.name for path in tmp_path.glob("memory-*")) == ["memory-514", "memory-515"]


def test_programs_that_read_no_file_are_told_by_variables(tmp_path: Path) -> None:
    cpus = min(2, len(os.sched_getaffinity(0)))
    assert set(SizeFiles(tmp_path).variables(2.0).values()) == {str(cpus)}
    assert {"OMP_NUM_THREADS", "GOMAXPROCS", "PYTEST_XDIST_AUTO_NUM_WORKERS"} <= set(SizeFiles(tmp_path).variables(1))
