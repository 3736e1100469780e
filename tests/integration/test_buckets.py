"""A bucket of a user's own in sandboxes of a real cluster: what is closed is in it, and credentials are nowhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

import shoal
from shoal import BucketMount, Secret
from shoal.actors.node.mounts.buckets import FRESH_S
from shoal.actors.node.mounts.manager import LINGER_S, STILL_S
from shoal.cluster.local import packages
from tests.cluster import Cluster, printing
from tests.integration.faulty_proxy import faulty_proxy
from tests.integration.test_secrets import command_lines, files_that_hold
from tests.integration.test_volumes import until
from tests.integration.test_volumes_helpers import told_still
from tests.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

CANARY = "canary-" + "b00c3e71"


@dataclass(frozen=True)
class Service:
    """An S3 service with the bucket `data`, whose objects are files of `root`."""

    endpoint: str
    root: Path

    def put(self, key: str, content: bytes) -> None:
        """As another program: what it puts into the directory itself, the service would not look for."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="ann",
            aws_secret_access_key=CANARY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        client.put_object(Bucket="data", Key=key, Body=content)

    def mount(self, prefix: str = "", **options: Any) -> BucketMount:
        secret = {"AWS_ACCESS_KEY_ID": "ann", "AWS_SECRET_ACCESS_KEY": CANARY, **options.pop("secret", {})}
        options.setdefault("bucket", "data")
        return BucketMount(prefix=prefix, endpoint=self.endpoint, secret=Secret.from_dict(secret), **options)


@pytest.fixture(scope="module")
def service(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    packages.ensure({"fusermount3": "fuse3"}, printing)
    root = tmp_path_factory.mktemp("s3")
    (root / "data" / "in").mkdir(parents=True)
    (root / "data" / "in" / "hello").write_text("hello\n")
    host, port = cluster.machine.settings.network.allow[0], free_port()
    argv = [f"{sysconfig.get_path('scripts')}/rclone", "serve", "s3", "--addr", f"{host}:{port}", str(root)]
    env = {**os.environ, "RCLONE_AUTH_KEY": f'"ann,{CANARY}"', "RCLONE_CONFIG": os.devnull}
    with subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL) as process:
        until_listening(host, port)
        yield Service(f"http://{host}:{port}", root)
        process.kill()


def until_listening(host: str, port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


def test_what_is_closed_is_in_the_bucket(cluster: Cluster, service: Service) -> None:
    volumes = {"/in": service.mount("in", read_only=True), "/out": service.mount("out/")}
    data = service.root / "data"
    with shoal.Sandbox.create(volumes=volumes) as sandbox:
        assert sandbox.run("cat /in/hello").stdout == "hello\n"
        assert sandbox.run("echo x >/in/new").returncode != 0
        assert sandbox.run("head -c 3000000 /dev/zero >/out/made", user="nobody").returncode == 0
        assert (data / "out" / "made").stat().st_size == 3_000_000  # at once
        assert sandbox.run("echo one >/out/a; echo two >>/out/a").returncode != 0  # rather than lose what there was
        assert (data / "out" / "a").read_text() == "one\n"
        sandbox.run("mkdir /out/d && mv /out/a /out/d/b && rm /out/made", check=True)
        assert [path.relative_to(data / "out") for path in (data / "out").rglob("*") if path.is_file()] == [Path("d/b")]
        service.put("out/from-outside", b"seen")
        end = time.monotonic() + FRESH_S + 3
        while sandbox.run("cat /out/from-outside").stdout != "seen":
            assert time.monotonic() < end
            time.sleep(0.2)
        inside = "cat /proc/mounts /proc/self/environ; ls -A /in /out"
        assert CANARY not in sandbox.run(inside).stdout
        assert CANARY not in command_lines()
        roots = (cluster.machine.state_dir, Path(cluster.file.run_dir))
        assert files_that_hold(CANARY, *roots) == []
        assert CANARY not in repr(sandbox.info())


def test_who_creates_is_told_what_is_wrong(service: Service) -> None:
    wrong = {
        shoal.PermissionDenied: service.mount(secret={"AWS_SECRET_ACCESS_KEY": "wrong"}),
        shoal.NotFound: service.mount(bucket="not-there"),
    }
    for error, mount in wrong.items():
        with pytest.raises(error):
            shoal.Sandbox.create(volumes={"/data": mount})


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_bucket_whose_service_stands_still_hangs_only_calls_into_it(cluster: Cluster, service: Service) -> None:
    """It accepts connections and never answers."""
    where = urlsplit(service.endpoint)
    with faulty_proxy(str(where.hostname), where.netloc) as proxy:
        still = replace(service, endpoint=f"http://{proxy.address}").mount("in")
        holder, leaver = (shoal.Sandbox.create(volumes={"/data": still}) for _ in range(2))
        with shoal.Sandbox.create(volumes={"/data": service.mount("in")}) as other:
            writing = holder.exec("sh", "-c", "exec 3>/data/made; echo ready; sleep 3; head -c 9000000 /dev/zero >&3")
            assert next(iter(writing.stdout)) == "ready\n"
            proxy.fault = "hangs"
            time.sleep(FRESH_S)
            began = time.monotonic()
            calls = [
                *(holder.exec("sh", "-c", command) for command in ("cat /data/hello", "ls /data", "echo >/data/new")),
                leaver.exec("cat", "/data/hello"),
            ]
            until(lambda: told_still(cluster) == (1, ["1.0"]), "the node and the metrics tell it", 30)
            assert [each.info().mounts_still for each in (holder, other)] == [("/data",), ()]
            for sandbox, command in ((holder, "cp /bin/true /tmp"), (other, "ls /data")):
                assert sandbox.run(f"{command} && echo done").stdout.endswith("done\n")
            _ends_soon(leaver)
            assert [call.wait() != 0 for call in (*calls[:3], writing)] == [True] * 4
            print(f"all calls have failed after {time.monotonic() - began:.0f} s")
            assert time.monotonic() - began < STILL_S + 40
            assert told_still(cluster) == (1, ["1.0"])
            proxy.fault = "none"
            until(lambda: told_still(cluster) == (0, ["0.0"]), "it answers again", 60)
            until(lambda: holder.run("cat /data/hello && echo >/data/newer").returncode == 0, "it is there again")
            proxy.fault = "hangs"
            time.sleep(FRESH_S)
            holder.exec("ls", "/data")
            _ends_soon(holder)
            until(lambda: _mounts() == 1, "of it nothing stays mounted", LINGER_S + 60)


def _ends_soon(sandbox: shoal.Sandbox) -> None:
    began = time.monotonic()
    sandbox.terminate()
    print(f"terminate {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 10  # the machine may be busy


def _mounts() -> int:
    return Path("/proc/self/mountinfo").read_text().count("fuse.rclone")
