"""Secrets in a real cluster: processes of a sandbox have them, and nothing else on the machine does."""

from __future__ import annotations

import errno
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from shoal import Secret
from shoal.client import config_file
from shoal.cluster.local import processes
from shoal.model.sandbox_json import info_to_json
from shoal.transport.http_server import normal_url
from tests.cluster import Cluster, cluster_engine
from tests.processes import command_line

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

CANARY = "canary-" + "8c1f0d5e"  # in two parts, so that this file is none of the places
PIECE = 1 << 20


def stored_bytes(path: Path) -> Iterator[bytes]:
    """What a file holds, without its holes. Pieces overlap."""
    with open(path, "rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            piece = os.pread(file.fileno(), PIECE, at)
            if not piece:
                return
            yield piece
            at += max(1, len(piece) - 64) if len(piece) == PIECE else len(piece)


def files_that_hold(text: str, *roots: Path) -> list[str]:
    """The files below some directories, in other mounts too, in which a text is."""
    wanted, found = text.encode(), []
    for root in roots:
        for directory, _, names in os.walk(root):
            for path in (Path(directory) / name for name in names):
                try:
                    if path.is_file() and not path.is_symlink() and any(wanted in each for each in stored_bytes(path)):
                        found.append(str(path))
                except OSError:
                    continue  # it has gone meanwhile
    return found


def command_lines() -> str:
    """Of all processes of the machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


def test_processes_have_them_and_nothing_else(cluster: Cluster, http_client: shoal.Client) -> None:
    values = {name: f"{CANARY}-{name}" for name in ("STORED", "INLINE", "FILE", "BUILD")}
    Secret.create("canary", {"STORED": values["STORED"]}, client=http_client)
    secrets = [
        Secret.from_name("canary", required_keys=["STORED"]),
        Secret.from_dict({"INLINE": values["INLINE"]}),
        Secret.from_dict({"FILE": values["FILE"]}).as_files("/run/secrets"),
    ]
    read = "echo $STORED $INLINE $(cat /run/secrets/FILE)"
    told = " ".join(values[name] for name in ("STORED", "INLINE", "FILE")) + "\n"
    images: list[str] = []
    made: list[shoal.Sandbox] = []
    try:
        for client in (cluster.client, http_client):
            made.append(shoal.Sandbox.create(secrets=secrets, persistent=client is http_client, client=client))
            assert made[-1].run(read).stdout == told
        ordinary, kept = made
        assert ordinary.run("ulimit -Hc; stat -c '%a %U' /run/secrets/FILE").stdout == "0\n400 root\n"
        step = 'test "$BUILD" = "$(cat /run/build/BUILD)" && echo done >/step'
        of_build = Secret.from_dict({"BUILD": values["BUILD"]})
        built = shoal.Image.base().run_commands(step, secrets=[of_build, of_build.as_files("/run/build")]).build()
        snapshot = ordinary.snapshot_filesystem()
        images += [image.id for image in (built, snapshot) if image.id is not None]
        with shoal.Sandbox.create(image=snapshot) as without:
            assert without.run(f"{read} 2>/dev/null; ls -A /run/secrets").stdout.strip() == ""
        with shoal.Sandbox.create(image=built) as after:
            assert after.run("cat /step; echo [$BUILD]; ls -A /run/build").stdout == "done\n[]\n"
            assert CANARY not in after.run("env").stdout
        kept.stop()
        kept.start()
        assert kept.run(read).stdout == told
        for missing in (Secret.from_name("none"), Secret.from_name("canary", required_keys=["OTHER"])):
            with pytest.raises(shoal.SecretNotFound):
                shoal.Sandbox.create(secrets=[missing])

        directories = (cluster.machine.state_dir, Path(cluster.file.run_dir), Path(cluster.file.temp_dir))
        assert files_that_hold(CANARY, *directories) == []
        assert CANARY not in command_lines()
        assert core_limits(cluster).keys() == {"ControllerActor", "NodeActor", "SandboxActor", "ServeReplica"}
        assert set(core_limits(cluster).values()) <= {"0", "1"}
        assert CANARY not in answers(cluster, [each.id for each in made])
        if cluster_engine() == "docker":
            assert CANARY not in inspected(cluster.file.engine_address)
    finally:
        for sandbox in made:
            sandbox.terminate()
        Secret.delete("canary")
        for image in images:
            cluster.client.delete_image(image, when_unused=True)
    assert files_that_hold(CANARY, Path(cluster.file.temp_dir)) == []  # nor in what was logged at their ends


def core_limits(cluster: Cluster) -> dict[str, str]:
    """The soft limit of core files of each kind of process through which values pass."""
    found = {}
    for each in processes.of_cluster(cluster.file.cluster, Path(cluster.file.temp_dir)):  # as Ray calls them
        name = command_line(each.pid).removeprefix("ray::").partition(".")[0].partition(":")[0].strip("\0 ")
        if name in ("ControllerActor", "NodeActor", "SandboxActor", "ServeReplica"):
            limits = Path(f"/proc/{each.pid}/limits").read_text()
            found[name] = next(line.split()[4] for line in limits.splitlines() if line.startswith("Max core file size"))
    return found


def answers(cluster: Cluster, sandbox_ids: list[str]) -> str:
    """What the API tells of all this, and what Ray's clients are told."""
    url = normal_url(cluster.file.api_url)
    token = config_file.read().servers[url].token
    paths = [f"/v1/sandboxes/{each}" for each in sandbox_ids]
    paths += ["/v1/sandboxes?include_ended=true", "/v1/secrets", "/v1/secrets/canary", "/v1/audit", "/v1/images"]
    found = []
    for path in paths:
        request = urllib.request.Request(f"{url}{path}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request) as answer:
            found.append(answer.read().decode())
    infos = [shoal.Sandbox.from_id(each).info() for each in sandbox_ids]
    return "\n".join([*found, *(json.dumps(info_to_json(info)) + repr(info) for info in infos)])


def inspected(address: str) -> str:
    """All that a Docker engine tells of its containers and images."""
    import docker

    engine = docker.APIClient(base_url=address)
    try:
        containers = [engine.inspect_container(each["Id"]) for each in engine.containers(all=True)]
        images = [[engine.inspect_image(each["Id"]), engine.history(each["Id"])] for each in engine.images()]
        return json.dumps([containers, images])
    finally:
        engine.close()
