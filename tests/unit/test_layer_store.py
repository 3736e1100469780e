"""The layer store on real files, with the real program: what it adds, keeps and removes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers import Changed, LayerStore
from shoal.model.errors import FailedPrecondition, ImageNotFound, InvalidRequest
from tests.layers import add_upper

pytestmark = pytest.mark.usefixtures("as_root")  # owners and overlayfs's attributes are root's to set

CONFIG = ImageConfig(env={"A": "1=2"}, user="nobody", workdir="/srv", entrypoint=("/e",), command=("c",))
MakeTar = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    made = LayerStore(tmp_path / "store")
    made.open()
    return made


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    def make(name: str = "root.tar", **files: str) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w") as archive:
            for each, content in (files or {"hello": "world"}).items():
                entry = tarfile.TarInfo(each)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content.encode()))
        return path

    return make


def test_a_root_filesystem_becomes_an_image_of_one_layer(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    archive = make_tar()
    image = store.add_root_filesystem(archive, "app", CONFIG)
    assert store.find("app") == image
    assert store.find("docker.io/library/app:latest") is not None
    assert image.config == CONFIG
    assert image.size == len("world")
    (lower,) = store.lower_dirs(image.digest)
    assert (lower / "hello").read_text() == "world"
    assert len(str(lower)) <= len(str(tmp_path / "store")) + len("/l/abcd")
    blob = (tmp_path / "store/images" / image.digest.removeprefix("sha256:") / "config.json").read_bytes()
    assert image.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert json.loads(blob)["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"]
    assert LayerStore(tmp_path / "store").find(image.digest) is not None
    assert store.add_root_filesystem(archive, "again", CONFIG).digest == image.digest
    assert sorted(each.reference for each in store.images()) == ["again:latest", "app:latest"]
    assert not list((tmp_path / "store/tmp").iterdir())


def test_a_broken_archive_leaves_nothing(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    archive = make_tar(big="x" * 100_000)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(archive.read_bytes()[:50_000])
    for bad in (cut, make_tar(**{"../out": "x"}), tmp_path / "missing.tar"):
        with pytest.raises(InvalidRequest) as refused:
            store.add_root_filesystem(bad, "bad", CONFIG)
        assert refused.value.field == "image"
    assert store.images() == []
    assert not list((tmp_path / "store/tmp").iterdir())
    assert not list((tmp_path / "store/layers").iterdir())


def test_what_is_held_stays_until_it_is_let_go(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    image = store.add_root_filesystem(make_tar(), "app", CONFIG)
    store.hold(image.digest, "c-1", durable=True)
    store.hold(image.digest, "c-2")
    store = LayerStore(tmp_path / "store")
    store.open()
    assert store.held() == {"c-1": image.digest, "c-2": image.digest}
    store.tag(image.digest, "other")
    store.remove("app")
    for reference in ("other", image.digest):
        with pytest.raises(FailedPrecondition):
            store.remove(reference)
    store.let_go("c-1")
    store.let_go("c-2")
    store.let_go("c-2")
    store.remove("other")
    store.remove(image.digest)
    assert store.images() == []
    assert not list((tmp_path / "store/layers").iterdir())
    assert not list((tmp_path / "store/l").iterdir())
    with pytest.raises(ImageNotFound):
        store.hold(image.digest, "c-3")
    with pytest.raises(ImageNotFound):
        store.lower_dirs(image.digest)


def test_a_layer_that_images_share_goes_with_the_last(store: LayerStore, make_tar: MakeTar) -> None:
    first = store.add_root_filesystem(make_tar(), "first", CONFIG)
    second = store.add_root_filesystem(make_tar(), "second", ImageConfig())
    assert first.digest != second.digest
    assert store.lower_dirs(first.digest) == store.lower_dirs(second.digest)
    store.remove("first")
    assert (store.lower_dirs(second.digest)[0] / "hello").exists()


def test_what_a_crash_left_is_removed_by_the_next_open(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    kept = store.add_root_filesystem(make_tar(), "kept", CONFIG)
    lost = store.add_root_filesystem(make_tar(other="file"), "lost", CONFIG)
    root = tmp_path / "store"
    (root / "tmp/half/fs/deep").mkdir(parents=True)
    layer = store.lower_dirs(lost.digest)[0].resolve().parent
    (layer / "layer.json").write_bytes(b"")  # as a filesystem leaves it whose journal was ahead of the data
    reopened = LayerStore(root)
    reopened.open()
    assert not list((root / "tmp").iterdir())
    assert reopened.find("lost") is None
    assert reopened.find("kept") == kept
    assert len(list((root / "l").iterdir())) == len(list((root / "layers").iterdir())) == 1


def test_drafts_of_the_living_are_left_alone(store: LayerStore, tmp_path: Path) -> None:
    with store._drafts.new() as draft:
        LayerStore(tmp_path / "store").open()
        assert draft.path.exists()
    assert not draft.path.exists()


def test_what_a_container_changed_becomes_an_image(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    base = store.add_root_filesystem(make_tar(kept="1", gone="2"), "base", CONFIG)
    upper = tmp_path / "upper"
    (upper / "left-out/deep").mkdir(parents=True)
    (upper / "new").write_text("3")
    os.mknod(upper / "gone", 0o020000, 0)
    made = add_upper(store, base.digest, upper, ImageConfig(env={"B": "3"}), "snapshot", exclude=("left-out",))
    top, bottom = store.lower_dirs(made.digest)
    assert (bottom,) == store.lower_dirs(base.digest)
    assert {path.name for path in top.iterdir()} == {"new", "gone"}
    assert (top / "gone").is_char_device()
    assert store.find("snapshot") == made
    assert made.config == ImageConfig(env={"B": "3"})
    assert add_upper(store, base.digest, upper, made.config, exclude=("left-out",)).digest == made.digest


def test_what_changes_is_frozen_only_while_it_is_copied(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    base = store.add_root_filesystem(make_tar(), "base", CONFIG)
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "new").write_text("frozen")

    @contextmanager
    def frozen() -> Iterator[Changed]:
        assert list((tmp_path / "store/tmp").iterdir())  # all is ready
        yield Changed(base.digest, upper)
        (upper / "new").write_text("later")
        assert store.find("snapshot") is None

    made = store.take_upper(frozen(), "snapshot")
    assert store.find("snapshot") == made
    assert (store.lower_dirs(made.digest)[0] / "new").read_text() == "frozen"
    with pytest.raises(ImageNotFound):
        store.take_upper(nullcontext(Changed("sha256:" + 64 * "0", upper)), "other")
    assert not list((tmp_path / "store/tmp").iterdir())


def test_the_next_one_is_taken_by_what_waits_for_it(store: LayerStore, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "new").write_text("new")

    def waiting() -> list[psutil.Process]:
        found = psutil.Process().children()
        return [each for each in found if each.status() != psutil.STATUS_ZOMBIE and "commit" in each.cmdline()]

    def take() -> list[psutil.Process]:
        """Those that there are while it is taken."""
        found: list[psutil.Process] = []

        @contextmanager
        def frozen() -> Iterator[Changed]:
            found.extend(waiting())
            yield Changed(None, upper)

        store.take_upper(frozen())
        return found

    store.get_ready()
    store.get_ready()
    first = waiting()
    assert len(first) == 1
    assert take() == first
    assert not waiting()
    store.get_ready()
    (second,) = waiting()
    second.kill()
    os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOWAIT)  # until all its threads are gone
    (third,) = take()
    assert third not in (*first, second)  # one that has died is not used
    store.get_ready()
    store.forget_ready()
    assert not waiting()
    store.get_ready()
    store.close()
    store.get_ready()
    assert not waiting()
    assert not list((tmp_path / "store/tmp").iterdir())


def test_an_image_travels_layer_by_layer(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    base = store.add_root_filesystem(make_tar(), "base", CONFIG)
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "new").write_bytes(os.urandom(100_000))
    image = add_upper(store, base.digest, upper, CONFIG)
    manifest = store.manifest(image.digest)
    blobs = {each: store.export_layer(each, tmp_path / each.replace(":", "-")) for each in manifest.layers}
    other = LayerStore(tmp_path / "other")
    other.open()
    with pytest.raises(ImageNotFound):
        other.add_manifest(manifest.config)
    with other.want(manifest.layers):
        for diff_id, blob in blobs.items():
            file = tmp_path / diff_id.replace(":", "-")
            assert blob.digest == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
            assert blob.size == file.stat().st_size
            wrong = "sha256:" + "0" * 64
            for bad in ((wrong, blob.digest), (diff_id, wrong)):
                with pytest.raises(InvalidRequest):
                    other.import_layer(iter([file.read_bytes()]), *bad)
            other.import_layer(iter([file.read_bytes()]), diff_id, blob.digest)
            other.import_layer(iter([file.read_bytes()]), diff_id)
            assert other.shrink(0) == []
        arrived = other.add_manifest(manifest.config, "arrived")
    assert (arrived.digest, arrived.config, arrived.size) == (image.digest, image.config, image.size)
    assert (other.lower_dirs(image.digest)[0] / "new").read_bytes() == (upper / "new").read_bytes()
    assert other.manifest(image.digest) == manifest
    store.hold(image.digest, "c-1")
    assert store.shrink(0) == []  # it is here alone
    assert other.shrink(0) == [image.digest]
    assert other.used() == 0


def test_an_archive_that_cannot_be_made_again_is_packed_anew(store: LayerStore, tmp_path: Path) -> None:
    archive = tmp_path / "twice.tar"
    with tarfile.open(archive, "w") as tar:
        for content in (b"first", b"second"):
            entry = tarfile.TarInfo("file")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    image = store.add_root_filesystem(archive, "app", CONFIG)
    (layer,) = store.manifest(image.digest).layers
    assert (store.lower_dirs(image.digest)[0] / "file").read_text() == "second"
    assert store.export_layer(layer, tmp_path / "out").size > 0


def test_what_was_not_on_the_disk_goes_with_a_crash_of_the_machine(
    store: LayerStore, make_tar: MakeTar, tmp_path: Path
) -> None:
    kept = store.add_root_filesystem(make_tar(), "kept", CONFIG)
    store.settle()
    lost = store.add_root_filesystem(make_tar(other="file"), "lost", CONFIG)
    for facts in (tmp_path / "store/layers").glob("*/layer.json"):
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "boot": "another"}))
    store.open()
    assert store.find("kept") == kept
    assert store.find(lost.digest) is None


def test_two_processes_unpack_a_layer_once(store: LayerStore, make_tar: MakeTar, tmp_path: Path) -> None:
    image = store.add_root_filesystem(make_tar(big="x" * 1_000_000), "app", CONFIG)
    (layer,) = store.manifest(image.digest).layers
    store.export_layer(layer, tmp_path / "blob")
    program = (
        "import sys; from pathlib import Path; from shoal.actors.engines.oci.layers import LayerStore\n"
        f"s = LayerStore(Path({str(tmp_path / 'other')!r})); s.open()\n"
        f"s.import_layer(iter([Path({str(tmp_path / 'blob')!r}).read_bytes()]), {layer!r})\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0] * 2
    other = LayerStore(tmp_path / "other")
    assert other.has_layer(layer)
    assert len(list((tmp_path / "other/l").iterdir())) == 1
    assert not list((tmp_path / "other/tmp").iterdir())


def test_a_killed_program_leaves_nothing_in_sight(tmp_path: Path, make_tar: MakeTar) -> None:
    fifo = tmp_path / "never-ends.tar"
    os.mkfifo(fifo)
    program = (
        "from pathlib import Path; from shoal.actors.engines.oci.layers import LayerStore\n"
        "from shoal.actors.engines.image_store import ImageConfig\n"
        f"s = LayerStore(Path({str(tmp_path / 'store')!r})); s.open()\n"
        f"s.add_root_filesystem(Path({str(fifo)!r}), 'app', ImageConfig())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    with fifo.open("wb") as writer:
        writer.write(make_tar(big="x" * 1_000_000).read_bytes()[:500_000])
        writer.flush()
        draft = wait_for(lambda: next((tmp_path / "store/tmp").glob("*/fs/big"), None))
        process.kill()
        process.wait()
        store = LayerStore(tmp_path / "store")
        wait_for(lambda: (store.open(), not draft.exists())[1] or None)  # once the program has noticed, too
    assert store.images() == []
    assert not list((tmp_path / "store/tmp").iterdir())


def wait_for(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 10
    while (found := look()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_files_with_holes_are_whole_and_take_no_room(store: LayerStore, tmp_path: Path, form: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "holes").open("wb") as file:
        for at in (0, 10 << 20, 64 << 20):
            file.seek(at)
            file.write(b"data")
    (tree / "after").write_text("x")
    archive = tmp_path / "sparse.tar"
    subprocess.run(["tar", f"--format={form}", "--sparse", "-C", tree, "-cf", archive, "."], check=True)
    assert archive.stat().st_size < 1 << 20
    image = store.add_root_filesystem(archive, "app", CONFIG)
    (lower,) = store.lower_dirs(image.digest)
    assert (lower / "holes").read_bytes() == (tree / "holes").read_bytes()
    assert (lower / "after").read_text() == "x"
    assert (lower / "holes").stat().st_blocks * 512 < 1 << 20
    (layer,) = store.manifest(image.digest).layers
    assert store.export_layer(layer, tmp_path / "out").size > 0
