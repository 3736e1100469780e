"""Images of containers' files: what the contract of the image store promises, of every engine that takes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines.contract import Container
from shoal.actors.engines.disks import Disks
from shoal.actors.engines.image_store import ImageConfig
from shoal.model import ids
from shoal.model.errors import FailedPrecondition, ImageNotFound, NotFound
from tests.contract.engines.labs import LABEL, LABS, DockerLab, Lab, MiB, OciLab, RealLab, opened

pytestmark = pytest.mark.anyio

REAL = ("docker", "oci")
NAMES = ("fake", *(pytest.param(name, marks=pytest.mark.engine) for name in REAL))


@pytest.fixture(params=NAMES)
async def lab(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Lab]:
    """Each engine that takes images of containers."""
    async with opened(LABS[request.param](tmp_path)) as lab:
        yield lab
        await forget(lab)


def name_of(lab: Lab) -> str:
    """A name for the images of one test."""
    return f"shoal-test-images/{lab.labels[LABEL]}:1"


async def forget(lab: Lab) -> None:
    """Nothing of the test's images may be left."""
    for key in await lab.remains():
        await lab.engine.remove(key)
    mine = name_of(lab).rpartition(":")[0]
    for image in await lab.engine.images.list():
        if image.reference.startswith(mine):
            await lab.engine.images.remove(image.reference)
    assert not [image for image in await lab.engine.images.list() if image.reference.startswith(mine)]


def disk_below(directory: Path) -> dict[str, Any]:
    """Options of a container with a disk of its own."""
    key = ids.new_container_key()
    return {"key": key, "disk": 64 * MiB, "disk_dir": directory / "d" / key}


async def said(lab: RealLab, container: Container, line: str) -> str:
    code, output = await lab.run(container, "sh", "-c", line)
    assert code == 0, output
    return output.strip()


async def test_an_image_has_what_changed_and_the_defaults_of_the_image_below(lab: Lab) -> None:
    below = await lab.engine.images.get(lab.image)
    first = await lab.start(env={"SHOAL_OWN": "1"}, default_env={"OWN_DEFAULT": "1"}, hostname="first")
    if isinstance(lab, RealLab):
        await said(lab, first, "echo hello > /root/new; rm /etc/debian_version; ln -s new /root/link")
        before = await said(lab, first, "cd / && ls -d .[a-z]* *")
    made = await lab.engine.images.commit(first.key, reference=name_of(lab))
    assert (made.reference, made.config) == (name_of(lab), below.config)
    assert made.digest not in ("", below.digest)
    assert (await lab.engine.images.get(made.digest, pull=False)).digest == made.digest
    second = await lab.start(image=made.digest)
    if isinstance(lab, RealLab):
        assert await said(lab, second, "cat /root/link; test ! -e /etc/debian_version; hostname") == "hello\nsandbox"
        assert await said(lab, second, "cd / && ls -d .[a-z]* *") == before
        assert "OWN" not in await said(lab, second, "cat /proc/1/environ /proc/self/environ | tr '\\0' '\\n'")
        assert (await said(lab, second, "stat -c %s /etc/resolv.conf /.shoal/agent")).count("\n") == 1
        assert not any(second.labels.get(name) for name in ("shoal.keep", "shoal.disk"))


async def test_other_defaults_take_the_place_of_those_below(lab: Lab) -> None:
    config = ImageConfig(
        {"A": "b=c 'd\" $e", "PATH": "/bin"}, "nobody", "/srv", ("/bin/echo", "a b"), ("c",), {"l": "1"}
    )
    first = await lab.start()
    made = await lab.engine.images.commit(first.key, config, name_of(lab))
    assert made.config == config
    assert (await lab.engine.images.get(name_of(lab), pull=False)).config == config
    second = await lab.start(image=made.digest)
    third = await lab.engine.images.commit(second.key, reference=name_of(lab).replace(":1", ":2"))
    assert third.config == config


async def test_an_image_stays_while_a_container_uses_it(lab: Lab) -> None:
    first = await lab.start()
    made = await lab.engine.images.commit(first.key, reference=name_of(lab))
    await lab.engine.remove(first.key)
    second = await lab.start(image=made.digest)
    with pytest.raises(FailedPrecondition):
        await lab.engine.images.remove(made.digest)
    await lab.engine.remove(second.key)
    await lab.engine.images.remove(made.digest)
    await lab.engine.images.remove(made.digest)
    with pytest.raises(ImageNotFound):
        await lab.engine.images.get(made.digest)
    with pytest.raises(NotFound):
        await lab.engine.images.commit(ids.new_container_key())


async def test_an_image_whose_parent_went_is_whole(lab: Lab) -> None:
    first = await lab.start()
    parent = await lab.engine.images.commit(first.key, reference=name_of(lab))
    second = await lab.start(image=parent.digest)
    child = await lab.engine.images.commit(second.key, reference=name_of(lab).replace(":1", ":2"))
    for key in (first.key, second.key):
        await lab.engine.remove(key)
    await lab.engine.images.remove(parent.digest)
    assert (await lab.start(image=child.digest)).pid > 1


@pytest.mark.engine
@pytest.mark.parametrize("name", REAL)
async def test_it_is_of_one_moment_though_the_container_writes_all_the_time(tmp_path: Path, name: str) -> None:
    async with opened(LABS[name](tmp_path)) as lab:
        assert isinstance(lab, RealLab)
        first = await lab.start()
        turn = " ".join(f"echo $n > /srv/{name}.new; mv /srv/{name}.new /srv/{name};" for name in "ab")
        program = f"n=0; while :; do n=$((n+1)); {turn} done"
        await said(lab, first, f"({program}) > /dev/null 2>&1 & sleep 0.2")
        made = await lab.engine.images.commit(first.key, reference=name_of(lab))
        later = int(await said(lab, first, "sleep 0.2; cat /srv/a"))
        second = await lab.start(image=made.digest)
        a, b = map(int, (await said(lab, second, "cat /srv/a /srv/b")).split())
        assert a - b in (0, 1)
        assert a < later
        await forget(lab)


@pytest.mark.engine
@pytest.mark.parametrize("made", [DockerLab, OciLab])
async def test_one_with_a_disk_of_its_own_running_and_stopped(
    tmp_path: Path, made: Callable[[Path, Disks], RealLab]
) -> None:
    disks = Disks(tmp_path / "disks")
    async with opened(made(tmp_path, disks)) as lab:
        assert isinstance(lab, RealLab)
        assert disks.problem() is None, disks.problem()
        first = await lab.start(keep=True, **disk_below(tmp_path))
        await said(lab, first, "echo 1 > /srv/one")
        running = await lab.engine.images.commit(first.key, reference=name_of(lab))
        await said(lab, first, "echo 2 > /srv/two")
        await lab.engine.stop(first.key)
        stopped = await lab.engine.images.commit(first.key, reference=name_of(lab).replace(":1", ":2"))
        for image, wanted in ((running, "one"), (stopped, "one\ntwo")):
            child = await lab.start(image=image.digest, **disk_below(tmp_path))
            assert await said(lab, child, "ls /srv") == wanted
            assert not any(child.labels.get(name) for name in ("shoal.keep", "shoal.disk"))
        again = await lab.engine.restart(first.key)
        assert await said(lab, again, "ls /srv") == "one\ntwo"
        await forget(lab)
