"""The layer store on real files, with the real program: what it adds, keeps and removes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers import LayerStore
from shoal.model.errors import FailedPrecondition, ImageNotFound, InvalidRequest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and overlayfs's attributes are root's to set")

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
