"""What a container reads of its own size in place of its machine's: the texts of the kernel's files, and variables for
what reads none. Pure.

Amounts stand still: a container's size is its limit, of which everything is free. What it uses now, and what its
neighbours use, is in its own files below `/sys/fs/cgroup`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

_MIB_IN_KB: Final = 1024

CPU_VARIABLES: Final = (
    "OMP_NUM_THREADS",  # OpenMP, BLAS, PyTorch; `nproc` too
    "GOMAXPROCS",
    "PYTHON_CPU_COUNT",  # from 3.13 on
    "PYTEST_XDIST_AUTO_NUM_WORKERS",  # `pytest -n auto`
    "RAYON_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",  # joblib, scikit-learn
    "CMAKE_BUILD_PARALLEL_LEVEL",
    "CARGO_BUILD_JOBS",
    "JULIA_CPU_THREADS",
    "DOTNET_PROCESSOR_COUNT",
)
"""Variables that programs read for a number of processors. They would count those that they may run on, which are all
of the machine's: the limit is on time, so that the kernel can balance."""

_X86_OF_MACHINE: Final = ("siblings", "cpu cores")
_X86_OF_CORE: Final = ("processor", "core id", "apicid", "initial apicid")

# Fields of `/proc/meminfo` that are the limit, and those without which programs fail; all others would be zero.
_MEMORY_ALL: Final = ("MemTotal", "MemFree", "MemAvailable")
_MEMORY_NONE: Final = (
    "Buffers", "Cached", "SwapCached", "Active", "Inactive", "Active(anon)", "Inactive(anon)", "Active(file)",
    "Inactive(file)", "Unevictable", "Mlocked", "SwapTotal", "SwapFree", "Dirty", "Writeback", "AnonPages", "Mapped",
    "Shmem", "KReclaimable", "Slab", "SReclaimable", "SUnreclaim", "KernelStack", "PageTables", "NFS_Unstable",
    "Bounce", "WritebackTmp",
)  # fmt: skip

SWAPS: Final = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
"""`/proc/swaps` without any."""


def visible_cpus(limit: float, machine: int) -> int:
    """The whole processors that a limit in cores is worth: rounded up, and no more than the machine has."""
    return max(1, min(math.ceil(limit), machine))


def cpu_variables(cpus: int) -> dict[str, str]:
    """Variables for programs that would count the machine's processors."""
    return dict.fromkeys(CPU_VARIABLES, str(cpus))


def meminfo(memory: int) -> str:
    """`/proc/meminfo` of so many MiB."""
    total = memory * _MIB_IN_KB
    fields = {**dict.fromkeys(_MEMORY_ALL, total), **dict.fromkeys(_MEMORY_NONE, 0), "CommitLimit": total}
    return "".join(f"{f'{name}:':<16}{kb:>8} kB\n" for name, kb in fields.items()) + "Committed_AS:          0 kB\n"


def cpuinfo(of_machine: str, cpus: int) -> str:
    """`/proc/cpuinfo` with the first of the machine's processors, as one package of single cores."""
    blocks = [block for block in of_machine.split("\n\n") if block.startswith("processor")]
    return "".join(_renumbered(block, number, cpus) + "\n\n" for number, block in enumerate(blocks[:cpus]))


def _renumbered(block: str, number: int, cpus: int) -> str:
    values = {**dict.fromkeys(_X86_OF_MACHINE, cpus), **dict.fromkeys(_X86_OF_CORE, number), "physical id": 0}
    return re.sub(
        r"^([a-z ]+?)(\s*:) ?\d+$",
        lambda line: f"{line[1]}{line[2]} {values[line[1]]}" if line[1] in values else line[0],
        block.rstrip("\n"),
        flags=re.MULTILINE,
    )


def stat(of_machine: str, cpus: int) -> str:
    """`/proc/stat` of processors that have always been idle. The time of the boot is the machine's: the start times of
    processes are counted from it."""
    lines = of_machine.splitlines()
    boot = next((line for line in lines if line.startswith("btime ")), "btime 0")
    all_times = next((line.split()[1:] for line in lines if line.startswith("cpu ")), [])
    idle = sum(int(time) for time in all_times) // max(1, sum(1 for line in lines if re.match(r"cpu\d", line)))
    rows = [f"cpu  0 0 0 {idle * cpus} 0 0 0 0 0 0"]
    rows += [f"cpu{number} 0 0 0 {idle} 0 0 0 0 0 0" for number in range(cpus)]
    rows += ["intr 0", "ctxt 0", boot, "processes 1", "procs_running 1", "procs_blocked 0", "softirq 0"]
    return "\n".join(rows) + "\n"


def cpu_directory(cpus: int) -> Iterator[tuple[str, str]]:
    """Files of `/sys/devices/system/cpu` (path, text) for so many single cores of one package."""
    everyone = "0" if cpus == 1 else f"0-{cpus - 1}"
    yield from ((name, f"{everyone}\n") for name in ("online", "possible", "present"))
    yield from ((name, "\n") for name in ("offline", "isolated"))
    yield "kernel_max", f"{cpus - 1}\n"
    yield from (("smt/active", "0\n"), ("smt/control", "notsupported\n"))
    for number in range(cpus):
        alone = {"core_cpus": 1 << number, "thread_siblings": 1 << number}
        together = dict.fromkeys(("package_cpus", "core_siblings", "die_cpus"), (1 << cpus) - 1)
        top = f"cpu{number}/topology"
        for name, mask in {**alone, **together}.items():
            yield f"{top}/{name}", f"{_mask(mask, cpus)}\n"
            yield f"{top}/{name}_list", f"{number if name in alone else everyone}\n"
        yield from ((f"{top}/{name}", "0\n") for name in ("physical_package_id", "die_id"))
        yield f"{top}/core_id", f"{number}\n"


def _mask(mask: int, cpus: int) -> str:
    """As the kernel writes sets of processors: words of 32 bits, by commas."""
    words = [f"{mask >> shift & 0xFFFF_FFFF:08x}" for shift in range(0, cpus, 32)]
    return ",".join(reversed(words))
