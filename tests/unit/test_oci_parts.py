"""The pure parts of the direct engine, and what it keeps on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines import isolation
from shoal.actors.engines.contract import ContainerSpec, Mount
from shoal.actors.engines.docker.request import create_request
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.oci import processes
from shoal.actors.engines.oci.bundle import ContainerPaths, Machine, config
from shoal.actors.engines.oci.groups import Groups
from shoal.actors.engines.oci.records import ProcessRef, Record, Records, Stage
from shoal.actors.engines.oci.sealed import SealedPrograms
from shoal.model.errors import FailedPrecondition

MiB = 1 << 20
IMAGE = ImageInfo("x", "sha256:abc", config=ImageConfig(env={"A": "image", "PATH": "/own"}, user="alice"))


def spec(**overrides: Any) -> ContainerSpec:
    plain: dict[str, Any] = {
        "key": "c-one",
        "image": "x",
        "agent": Path("/opt/agent"),
        "run_dir": Path("/run/c-one"),
        "cpu": 0.5,
        "memory": 512 * MiB,
        "pids": 64,
    }
    return ContainerSpec(**{**plain, **overrides})


def made(asked: ContainerSpec, filter_file: Path | None = None) -> dict[str, Any]:
    paths = ContainerPaths(Path("/root-dir"), "/shoal/c-one", filter_file)
    return config(asked, IMAGE, paths, Machine({"mine": 1}, {"sigpending": 7}))


def test_a_config_closes_what_can_be_closed() -> None:
    asked = made(spec(env={"SHOAL_USER": "forged"}))
    process, linux = asked["process"], asked["linux"]
    assert set(process["env"]) >= {"A=image", "PATH=/own", "HOSTNAME=sandbox", "SHOAL_USER=alice"}
    assert process["noNewPrivileges"]
    assert "inheritable" not in process["capabilities"]
    assert "ambient" not in process["capabilities"]
    assert {one["type"] for one in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "cgroup", "network"}
    assert linux["seccomp"] == {"mine": 1}
    assert linux["resources"]["cpu"] == {"quota": 50_000, "period": 100_000}
    assert linux["resources"]["memory"] == {"limit": 512 * MiB, "swap": 512 * MiB}
    assert linux["resources"]["pids"] == {"limit": 64}
    assert linux["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    binds = {mount["destination"]: mount["options"] for mount in asked["mounts"] if mount["type"] == "bind"}
    assert all("ro" in options for options in binds.values())


def test_gvisor_holds_the_number_of_processes_itself_and_starts_in_a_namespace_that_is_ready() -> None:
    asked = made(spec(runtime="runsc", namespace=Path("/n/c-one")))
    linux, limits = asked["linux"], asked["process"]["rlimits"]
    assert {"type": "RLIMIT_NPROC", "soft": 64, "hard": 64} in limits
    assert linux["resources"]["pids"]["limit"] > 2 * 64, "each of them is two on the machine"
    assert {"type": "network", "path": "/n/c-one"} in linux["namespaces"]


def test_either_the_runtime_compiles_the_profile_or_the_agent_applies_the_filter() -> None:
    compiled = made(spec(env={"SHOAL_SECCOMP": "/forged"}))
    assert "seccomp" in compiled["linux"]
    assert "SHOAL_SECCOMP=" in compiled["process"]["env"]
    applied = made(spec(env={"SHOAL_SECCOMP": "/forged"}), Path("/filters/f"))
    assert "seccomp" not in applied["linux"]
    assert "SHOAL_SECCOMP=/.shoal/filter" in applied["process"]["env"]
    assert ("/filters/f", "/.shoal/filter") in [(m["source"], m["destination"]) for m in applied["mounts"]]


def test_both_engines_carry_out_the_same_isolation() -> None:
    asked = spec(mounts=(Mount(Path("/data"), "/data", read_only=False),), default_env={"A": "default", "B": "default"})
    ours, docker = made(asked), create_request(asked, IMAGE, seccomp="{}")
    host = docker["HostConfig"]
    assert [f"CAP_{name}" for name in host["CapAdd"]] == ours["process"]["capabilities"]["bounding"]
    assert host["MaskedPaths"] == ours["linux"]["maskedPaths"] == list(isolation.MASKED_PATHS)
    assert host["ReadonlyPaths"] == ours["linux"]["readonlyPaths"]
    assert host["Sysctls"] == ours["linux"]["sysctl"]
    assert host["OomScoreAdj"] == ours["process"]["oomScoreAdj"]
    binds = [mount for mount in ours["mounts"] if mount["type"] == "bind"]
    assert [(m["Source"], m["Target"], m["ReadOnly"]) for m in host["Mounts"]] == [
        (m["source"], m["destination"], "ro" in m["options"]) for m in binds
    ]
    assert set(docker["Env"]) <= set(ours["process"]["env"])


def test_records_are_read_as_they_were_written_and_dropped_whole(tmp_path: Path) -> None:
    records = Records(tmp_path / "containers")
    records.open()
    record = Record("c-one", "sha256:abc", "runc", 1.5, labels={"a": "b"}, maker=ProcessRef(1, 2))
    records.put(record)
    assert Records(tmp_path / "containers").get("c-one") == record
    changed = record.but(stage=Stage.MADE, first=ProcessRef(3, 4))
    records.put(changed)
    assert [*records.all()] == [changed]
    (tmp_path / "containers" / "gone-c-two").mkdir()
    (tmp_path / "containers" / "c-three").mkdir()
    assert records.sweep() == ["c-three"]
    records.drop("c-one")
    records.drop("c-one")
    assert records.get("c-one") is None
    assert [path.name for path in (tmp_path / "containers").iterdir()] == ["c-three"]


def test_a_process_is_told_from_a_later_one_of_its_pid() -> None:
    own = processes.ref(os.getpid())
    assert processes.alive(own)
    assert not processes.alive(ProcessRef(own.pid, own.started - 1))
    assert not processes.alive(ProcessRef())
    assert processes.exit_code(own) is None
    child = os.fork()
    if child == 0:
        os._exit(7)
    ended = processes.ref(child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not processes.alive(ended)
    assert processes.exit_code(ended) == 7
    os.waitpid(child, 0)
    assert processes.exit_code(ended) is None


def test_groups_are_found_in_either_version(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids io")
    version_2 = f"30 20 0:25 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    group = Groups(version_2).of("c-one")
    assert (group.unified, group.memory) == (True, tmp_path / "shoal" / "c-one")
    names = ("cpu", "cpuacct", "memory", "pids", "freezer")
    version_1 = "".join(f"3 2 0:1 / /cg/{name} rw - cgroup cgroup rw,{name}\n" for name in names)
    group = Groups(version_1 + version_2).of("c-one")
    assert (group.unified, group.memory) == (False, Path("/cg/memory/shoal/c-one"))
    with pytest.raises(FailedPrecondition, match="in sight"):
        Groups(version_2.replace("0:25 /", "0:25 /docker/x"))
    with pytest.raises(FailedPrecondition, match="mount -t cgroup2"):
        Groups("")


def test_a_program_is_executed_from_memory_that_nobody_can_change_and_copied_anew_once_replaced(tmp_path: Path) -> None:
    program, sealed = tmp_path / "program", SealedPrograms()
    shutil.copy("/bin/true", program)
    with sealed.of(str(program)) as executable:
        assert subprocess.run([str(program)], executable=executable, check=False).returncode == 0
        copy = os.open(executable, os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(copy, b"x")
        os.close(copy)
    shutil.copy("/bin/false", tmp_path / "new")
    (tmp_path / "new").replace(program)
    with sealed.of(str(program)) as executable:
        assert subprocess.run([str(program)], executable=executable, check=False).returncode == 1
    before = len(os.listdir("/proc/self/fd"))
    sealed.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_program_that_this_kernel_does_not_execute_from_memory_is_executed_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    sealed = SealedPrograms()
    with sealed.of("/bin/true") as executable:
        assert executable == "/bin/true"
    sealed.close()
