"""Which processes are a cluster's, and stopping them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.cluster.local import processes
from shoal.cluster.local import ray as local_ray
from shoal.model.cluster_file import ProcessRef

SLEEP = [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]


def mark() -> str:
    """A cluster's, of this test's own: others may run it at the same time on this machine."""
    return secrets.token_hex(4)


@contextmanager
def running(argv: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_process_is_known_by_pid_and_start() -> None:
    with running(SLEEP) as process:
        ref = processes.ref(process.pid)
        assert ref is not None
        assert processes.alive(ref)
        assert not processes.alive(ProcessRef(ref.pid, ref.started - 1))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.alive(ref), "a zombie is no living process"


def test_marked_processes_and_their_children_are_the_clusters(tmp_path: Path) -> None:
    child = f"import subprocess, sys; subprocess.run({SLEEP!r})"
    ours = mark()
    environment = {**os.environ, processes.MARK: ours}
    with running([sys.executable, "-c", child], env=environment) as process, running(SLEEP) as other:
        found = {ref.pid for ref in processes.of_cluster(ours, tmp_path)}
        assert process.pid in found
        assert len(found) == 2
        assert other.pid not in found
        assert processes.of_cluster(ours[:-1], tmp_path) == []
        processes.stop(processes.of_cluster(ours, tmp_path), grace_s=20)


def test_what_a_sandbox_marks_is_not_the_clusters(tmp_path: Path) -> None:
    theirs = mark()
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    with running([*unshare, "env", f"{processes.MARK}={theirs}", *SLEEP]):
        assert processes.of_cluster(theirs, tmp_path) == []
        assert local_ray.stop(theirs, tmp_path) == []


def test_one_that_writes_the_raylets_log_is_the_clusters_and_a_reader_is_not(tmp_path: Path) -> None:
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    log = logs / "raylet.out"
    with (
        log.open("wb") as writing,
        log.open("rb") as reading,
        running(SLEEP, stderr=writing) as worker,
        running(SLEEP, stdin=reading),
    ):
        assert [ref.pid for ref in processes.of_cluster(mark(), tmp_path)] == [worker.pid]


def test_this_process_is_never_the_clusters(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from shoal.cluster.local import processes; import sys; "
        "print(processes.of_cluster(sys.argv[2], Path(sys.argv[1])))"
    )
    ours = mark()
    environment = {**os.environ, processes.MARK: ours}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), ours],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_stop_kills_what_does_not_end_by_itself() -> None:
    with running(STUBBORN) as process:
        ref = processes.ref(process.pid)
        assert ref is not None
        started = time.monotonic()
        processes.stop([ref], grace_s=0.2)
        assert 0.2 <= time.monotonic() - started < 30  # a machine may stand still for seconds
        assert not processes.alive(ref)


def test_stop_leaves_a_pid_that_somebody_else_has_now() -> None:
    with running(SLEEP) as process:
        ref = processes.ref(process.pid)
        assert ref is not None
        processes.stop([ProcessRef(ref.pid, ref.started - 1)], grace_s=0.2)
        assert processes.alive(ref)
        processes.stop([ref], grace_s=20)  # a machine may stand still for seconds
        assert process.wait() in (-signal.SIGTERM, 0)
