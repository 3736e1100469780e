"""Images of one directory, and images in containers that run: what the contract promises, of every engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.actors.engines.contract import Container
from shoal.actors.engines.disks import Disks, mounts
from shoal.model import ids
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageNotFound,
    InvalidRequest,
    NotADirectory,
    NotFound,
    PathNotFound,
)
from tests.contract.engines.labs import LABS, Lab, MiB, OciLab, RealLab, opened
from tests.contract.engines.test_commits import disk_below, forget, name_of, said

pytestmark = pytest.mark.anyio

NAMES = ("fake", pytest.param("oci", marks=pytest.mark.engine))
TREE = (
    "mkdir -p /srv/tree/d /srv/tree/none && cd /srv/tree && echo one > d/one && ln d/one two && ln -s d/one link && "
    'chown 1000:1001 d/one && chmod 2750 d && python3 -c \'import os; os.setxattr("d", "user.a", b"b")\' && '
    "truncate -s 64M hole && rmdir none && chown 1000 . && chmod 700 ."
)
LOOK = (
    "find . -printf '%p %m %U %G %l %s %T@\\n' | sort; find . -links 2 -type f; "
    'python3 -c \'import os; print(os.getxattr("d", "user.a"))\''
)


@pytest.fixture(params=NAMES)
async def lab(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Lab]:
    async with opened(LABS[request.param](tmp_path)) as lab:
        yield lab
        await forget(lab)


async def seen(lab: RealLab, container: Container, directory: str) -> str:
    return await said(lab, container, f"cd {directory} && {LOOK}")


async def test_a_directory_becomes_an_image_that_others_mount_and_write_to(lab: Lab) -> None:
    first, second = await lab.start(), await lab.start()
    if isinstance(lab, RealLab):
        await said(lab, first, TREE)
    made = await lab.engine.images.commit_directory(first.key, "/srv/tree", name_of(lab))
    assert made.reference == name_of(lab)
    for _ in range(2):
        await lab.engine.mount_image(second.key, made.digest, "/mnt/a/b")
    await lab.engine.mount_image(second.key, name_of(lab), "/mnt/other")
    if isinstance(lab, RealLab):
        assert await seen(lab, second, "/mnt/a/b") == await seen(lab, first, "/srv/tree")
        assert await said(lab, second, "du -k /mnt/a/b/hole | cut -f 1") == "0"
        await said(lab, second, "cd /mnt/a/b && echo new > new && rm two && echo more >> d/one")
        assert await said(lab, second, "cat /mnt/a/b/d/one; ls /mnt/other") == "one\nmore\nd\nhole\nlink\ntwo"
        assert isinstance(lab, OciLab)
        assert not [each for each in mounts.table() if lab.top in each.point.parents and each.point.name != "runtime"]
        again = await lab.engine.images.commit_directory(second.key, "/mnt/a/b", name_of(lab).replace(":1", ":2"))
        await lab.engine.mount_image(first.key, again.digest, "/again")
        assert await said(lab, first, "cat /again/new; test ! -e /again/two") == "new"
        whole = await lab.engine.images.commit(second.key, reference=name_of(lab).replace(":1", ":3"))
        third = await lab.start(image=whole.digest)
        assert await said(lab, third, "ls /mnt /mnt/a/b") == "/mnt:\na\nother\n\n/mnt/a/b:"
    await lab.engine.remove(first.key)
    with pytest.raises(FailedPrecondition):
        await lab.engine.images.remove(made.digest)
    for _ in range(2):
        await lab.engine.unmount_image(second.key, "/mnt/a/b")
    if isinstance(lab, RealLab):
        assert await said(lab, second, "ls -A /mnt/a/b; ls /mnt/other") == "d\nhole\nlink\ntwo"


async def test_what_cannot_be_is_refused_and_leaves_nothing(lab: Lab) -> None:
    first = await lab.start()
    made = await lab.engine.images.commit_directory(first.key, "/etc", name_of(lab))
    with pytest.raises(ImageNotFound):
        await lab.engine.mount_image(first.key, "shoal-tests/none:1", "/mnt/a")
    await lab.engine.mount_image(first.key, made.digest, "/mnt/a")
    with pytest.raises(AlreadyExists) as twice:
        await lab.engine.mount_image(first.key, lab.image, "/mnt/a")
    assert twice.value.field == "path"
    for call in (lab.engine.mount_image(ids.new_container_key(), made.digest, "/mnt/a"),
                 lab.engine.images.commit_directory(ids.new_container_key(), "/mnt/a")):  # fmt: skip
        with pytest.raises(NotFound):
            await call
    if isinstance(lab, RealLab):
        for path in ("/etc/passwd", "/etc/passwd/x"):
            with pytest.raises(InvalidRequest) as refused:
                await lab.engine.mount_image(first.key, made.digest, path)
            assert refused.value.field == "path"
            with pytest.raises(NotADirectory):
                await lab.engine.images.commit_directory(first.key, path)
        with pytest.raises(PathNotFound):
            await lab.engine.images.commit_directory(first.key, "/none")
        for path in ("/dev/shm", "/proc"):
            with pytest.raises(InvalidRequest) as not_own:
                await lab.engine.images.commit_directory(first.key, path)
            assert not_own.value.field == "path"
        assert isinstance(lab, OciLab)
        assert len([hold for hold in lab.layers.held() if first.key in hold]) == 2
        await said(lab, first, "ln -s /etc /srv/link")
        linked = await lab.engine.images.commit_directory(first.key, "/srv/link", name_of(lab).replace(":1", ":2"))
        assert linked.digest == made.digest


@pytest.mark.engine
async def test_it_counts_for_the_disk_and_is_there_again_after_a_stop(tmp_path: Path) -> None:
    async with opened(OciLab(tmp_path, Disks(tmp_path / "disks"))) as lab:
        assert isinstance(lab, OciLab)
        first = await lab.start(keep=True, **disk_below(tmp_path))
        plain = await lab.start()
        made = await lab.engine.images.commit_directory(first.key, "/etc", name_of(lab))
        for container in (first, plain):
            await lab.engine.mount_image(container.key, made.digest, "/mnt/a")
            before = await lab.engine.disk_usage(container.key, limit=1 << 30)
            await said(lab, container, "head -c 8M /dev/urandom > /mnt/a/big; sync")
            assert await lab.engine.disk_usage(container.key, limit=1 << 30) - before > 7 * MiB
        code, output = await lab.run(first, "sh", "-c", "head -c 100M /dev/zero > /mnt/a/more")
        assert (code, "No space left" in output) == (1, True)
        await lab.engine.stop(first.key)
        later = lab.another(Disks(tmp_path / "disks"))  # as after a restart of the node
        await later.open()
        try:
            again = await later.restart(first.key)
            await later.mount_image(first.key, made.digest, "/mnt/a")
            assert await said(lab, again, "stat -c %s /mnt/a/big; test -e /mnt/a/passwd") == f"{8 * MiB}"
            await later.unmount_image(first.key, "/mnt/a")
            assert await later.disk_usage(first.key, limit=1 << 30) < 8 * MiB
        finally:
            await later.close()
        await forget(lab)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["docker"])
async def test_an_engine_without_the_ability_says_so(tmp_path: Path, name: str) -> None:
    async with opened(LABS[name](tmp_path)) as lab:
        first = await lab.start()
        for call in (lab.engine.mount_image(first.key, lab.image, "/mnt"),
                     lab.engine.images.commit_directory(first.key, "/etc")):  # fmt: skip
            with pytest.raises(FailedPrecondition) as refused:
                await call
            assert refused.value.state == "no_mounts"
