"""Images of sandboxes' files in a real cluster: taken, used, forked, named, let go; and killed in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal.actors.engines.catalogue import engine_named
from shoal.actors.names import image_reference, node_actor_name
from shoal.model.errors import AlreadyExists, FailedPrecondition, ImageNotFound, PathNotFound, SandboxEnded, ShoalError
from shoal.model.settings import Settings
from tests.cluster import Cluster
from tests.processes import actor_pid, kill

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


async def names(cluster: Cluster) -> set[str]:
    """What the engine has of images of this cluster."""
    engine = engine_named(cluster.machine.settings.engine, Settings.from_dict(cluster.file.settings))
    await engine.open()
    try:
        prefix = image_reference(cluster.file.cluster)
        return {image.reference for image in await engine.images.list() if image.reference.startswith(prefix)}
    finally:
        await engine.close()


def images_on(cluster: Cluster) -> set[str]:
    with ThreadPoolExecutor(1) as thread:
        import asyncio

        return thread.submit(lambda: asyncio.run(names(cluster))).result()


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it never came to be: {what}"
        time.sleep(0.3)


def variables(sandbox: shoal.Sandbox) -> set[str]:
    """The names of those that its processes have."""
    return set(sandbox.run("env | cut -d = -f 1").stdout.split())


@pytest.fixture(scope="module", autouse=True)
def nothing_stays(cluster: Cluster) -> Iterator[None]:
    """At the end the node has the images that it had before."""
    before, known = images_on(cluster), {image.id for image in cluster.client.images()}
    yield
    for image in cluster.client.images():
        if image.id not in known:
            cluster.client.delete_image(image.id, when_unused=True)
    until(lambda: images_on(cluster) <= before, "nothing of the module's images is left")


def test_a_sandbox_begins_with_the_files_of_another(cluster: Cluster, both_ways: shoal.Client) -> None:
    with shoal.Sandbox.create(env={"A": "1"}) as source:
        source.run("echo hello > /root/new; rm /etc/debian_version; mkdir -p /srv/d && chmod 700 /srv/d", check=True)
        image = source.snapshot_filesystem("snapshots:test")
        source.run("echo later > /root/new", check=True)
        for given in (image, shoal.Image.from_name("snapshots:test"), "snapshots:test"):
            with shoal.Sandbox.create(image=given) as child:
                ran = child.run("cat /root/new; test ! -e /etc/debian_version && stat -c %a /srv/d; echo $A; hostname")
                assert ran.stdout == "hello\n700\n\nsandbox\n"
                assert variables(child) | {"A"} == variables(source)
                assert (
                    child.run("ls -d /.shoal/*; cat /etc/hosts").stdout
                    == source.run("ls -d /.shoal/*; cat /etc/hosts").stdout
                )
                with pytest.raises(FailedPrecondition) as caught:
                    both_ways.delete_image("snapshots:test")
                assert caught.value.fields["in_use"] == 1
        assert image.id is not None
        assert both_ways.image(image.id).size > 0
        both_ways.delete_image(image.id)
        with pytest.raises(ImageNotFound):
            shoal.Sandbox.create(image=image)
    with pytest.raises(SandboxEnded):
        source.snapshot_filesystem()


def test_four_forks(cluster: Cluster, both_ways: shoal.Client) -> None:
    with shoal.Sandbox.create(env={"A": "1"}, tags={"of": "forks"}, cpu=(0.05, 1.0)) as source:
        source.run("echo seed > /root/seed", check=True)
        forks = source.fork(4)
        try:
            assert len({fork.id for fork in forks}) == 4
            for number, fork in enumerate(forks):
                assert fork.run(f"cat /root/seed; echo $A; echo {number} > /root/seed").stdout == "seed\n1\n"
            assert [fork.run("cat /root/seed").stdout for fork in forks] == ["0\n", "1\n", "2\n", "3\n"]
            assert source.run("cat /root/seed").stdout == "seed\n"
            assert {fork.info().tags["of"] for fork in forks} == {"forks"}
        finally:
            for fork in forks:
                fork.terminate()


def test_a_directory_is_mounted_into_others(cluster: Cluster, both_ways: shoal.Client) -> None:
    with shoal.Sandbox.create() as one, shoal.Sandbox.create() as other:
        one.run("mkdir -p /srv/d && cd /srv/d && echo 1 > rows && chown 1000 . && chmod 750 .", check=True)
        data = one.snapshot_directory("/srv/d", "snapshots:d")
        mounted = shoal.Sandbox.from_id(other.id, client=both_ways)
        mounted.mount_image("/mnt/d", "snapshots:d")
        mounted.mount_image("/mnt/base", shoal.Image.base())
        assert other.run("stat -c '%u %a' /mnt/d && echo 2 >> /mnt/d/rows; ls /mnt/base").stdout.startswith(
            "1000 750\n"
        )
        assert mounted.info().mounted_images == {"/mnt/d": data.id, "/mnt/base": "shoal/base"}
        with pytest.raises(AlreadyExists):
            mounted.mount_image("/mnt", data)
        one.mount_image("/again", mounted.snapshot_directory("/mnt/d"))
        assert one.run("cat /again/rows /srv/d/rows").stdout == "1\n2\n1\n"
        with pytest.raises(PathNotFound):
            one.snapshot_directory("/none")
        with pytest.raises(FailedPrecondition) as needed:
            both_ways.delete_image("snapshots:d")
        assert needed.value.state == "in_use"
        node_id = other.info().node_id
        assert node_id is not None
        kill(actor_pid(node_actor_name(node_id)))
        assert other.run("cat /mnt/d/rows").stdout == "1\n2\n"
        mounted.unmount_image("/mnt/base")
        assert other.run("ls /mnt/base; cat /mnt/d/rows").stdout == "1\n2\n"
    both_ways.delete_image("snapshots:d")


def test_a_mounted_image_is_there_again_after_a_stop(cluster: Cluster) -> None:
    source = shoal.Sandbox.create(persistent=True, disk=64)
    try:
        source.mount_image("/mnt/base", "shoal/base")
        source.run("echo kept > /mnt/base/kept", check=True)
        source.stop()
        assert source.info().mounted_images == {"/mnt/base": "shoal/base"}
        source.start()
        assert source.run("cat /mnt/base/kept && test -e /mnt/base/etc/passwd").stdout == "kept\n"
    finally:
        source.terminate()


def test_of_a_persistent_one_that_is_stopped(cluster: Cluster) -> None:
    source = shoal.Sandbox.create(persistent=True, disk=64)
    try:
        source.run("echo kept > /root/kept", check=True)
        source.stop()
        image = source.snapshot_filesystem(ttl=600)
        with shoal.Sandbox.create(image=image) as child:
            assert child.run("cat /root/kept").stdout == "kept\n"
        source.start()
        assert source.run("cat /root/kept").stdout == "kept\n"
    finally:
        source.terminate()


@pytest.mark.long
@pytest.mark.parametrize("who", ["controller", "node"])
def test_what_a_kill_meanwhile_leaves_goes(cluster: Cluster, who: str) -> None:
    with shoal.Sandbox.create() as source:
        source.run("head -c 64M /dev/urandom > /root/big", check=True)
        before = {image.id for image in cluster.client.images()}
        node_id = source.info().node_id
        assert node_id is not None
        pid = actor_pid("controller" if who == "controller" else node_actor_name(node_id))
        with ThreadPoolExecutor(1) as thread:
            taking = thread.submit(source.snapshot_filesystem, "killed:once")
            time.sleep(0.15)  # where in the snapshot it falls
            kill(pid)
            try:
                taken = taking.result()
            except ShoalError:
                taken = None  # nothing happened, and nothing may be left
        if taken is not None:
            with shoal.Sandbox.create(image=taken) as child:
                assert child.run("stat -c %s /root/big").stdout == f"{64 << 20}\n"
            assert taken.id is not None
            cluster.client.delete_image(taken.id)
        assert {image.id for image in cluster.client.images()} == before
