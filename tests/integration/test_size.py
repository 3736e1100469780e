"""A sandbox sees its own size, not its machine's."""

from __future__ import annotations

import json

import pytest

import shoal

pytestmark = pytest.mark.engine

LOOK = """
import json, multiprocessing, os, re
proc = {name: open('/proc/' + name).read() for name in ('cpuinfo', 'meminfo', 'stat', 'swaps')}
print(json.dumps({
    'cpus': [os.cpu_count(), multiprocessing.cpu_count(), os.sysconf('SC_NPROCESSORS_CONF')],
    'cpuinfo': len(re.findall(r'^processor', proc['cpuinfo'], re.M)),
    'stat': len(re.findall(r'^cpu[0-9]', proc['stat'], re.M)),
    'directory': len([name for name in os.listdir('/sys/devices/system/cpu') if re.fullmatch('cpu[0-9]+', name)]),
    'memory': int(re.search(r'MemTotal: +([0-9]+)', proc['meminfo'])[1]),
    'swaps': len(proc['swaps'].splitlines()),
    'mounts': open('/proc/self/mountinfo').read(),
}))
"""


def test_a_sandbox_sees_its_own_size(cluster: object) -> None:
    with shoal.Sandbox.create(cpu=(0.125, 1.0), memory=(128, 512)) as sandbox:
        seen = json.loads(sandbox.run(["python3", "-c", LOOK], check=True).stdout)
        assert seen["cpus"] == [1, 1, 1]
        assert (seen["cpuinfo"], seen["stat"], seen["directory"], seen["swaps"]) == (1, 1, 1, 1)
        assert seen["memory"] == 512 * 1024
        assert "cpu-1/cpuinfo" in seen["mounts"]
        assert sandbox.run("nproc").stdout == "1\n"
        asked = "echo $GOMAXPROCS $PYTHON_CPU_COUNT $PYTEST_XDIST_AUTO_NUM_WORKERS"
        assert sandbox.run(asked).stdout == "1 1 1\n"
        assert sandbox.run(asked, env={"GOMAXPROCS": "3"}).stdout == "3 1 1\n"


def test_a_sandboxs_own_variables_win(cluster: object) -> None:
    with shoal.Sandbox.create(cpu=(0.125, 1.0), env={"OMP_NUM_THREADS": "3"}) as sandbox:
        assert sandbox.run("nproc").stdout == "3\n"
