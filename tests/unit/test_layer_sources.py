"""Images out of registries, archives and layouts, with the real program and a registry in memory."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto import mock_aws

from hatch_build import PROGRAMS, ROOT, find_go
from shoal.actors.engines.disks import mounts
from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers import LayerStore, sources
from shoal.actors.engines.oci.layers.config_blob import architecture
from shoal.actors.engines.oci.layers.program import run_layers
from shoal.model.errors import ImageNotFound, InvalidRequest, PermissionDenied, QuotaExceeded, ShoalError, Unavailable
from tests.layers import add_upper

pytestmark = pytest.mark.usefixtures("as_root")  # owners and overlayfs's attributes are root's to set

CONFIG = ImageConfig(env={"A": "1"}, user="nobody", workdir="/srv", command=("c",))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry."""
    program = tmp_path_factory.mktemp("registry") / "registry"
    module = ROOT / PROGRAMS["shoal-layers"]
    environment = {**os.environ, "CGO_ENABLED": "0"}
    build = [find_go(), "build", "-o", str(program), "./internal/testregistry"]
    subprocess.run(build, cwd=module, env=environment, check=True)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def new_store(directory: Path) -> LayerStore:
    made = LayerStore(directory)
    made.open()
    return made


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return new_store(tmp_path / "store")


def layer_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def saved(path: Path, *layers: bytes, made_for: str | None = None, promised: list[str] | None = None) -> Path:
    """An archive as `docker save` writes it."""
    config = json.dumps(
        {
            "architecture": made_for or architecture(),
            "os": "linux",
            "config": {"Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": promised or [digest(layer) for layer in layers]},
        }
    ).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "RepoTags": ["app:1"], "Layers": names}]).encode()
    files = {"config.json": config, "manifest.json": manifest, **dict(zip(names, layers, strict=True))}
    path.write_bytes(layer_of(**files))
    return path


def test_an_image_goes_to_a_registry_and_comes_back(store: LayerStore, registry: str, tmp_path: Path) -> None:
    image = store.add_image(saved(tmp_path / "saved.tar", layer_of(one=b"1"), layer_of(two=b"2")), "app")
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "three").write_text("3")
    made = add_upper(store, image.digest, upper, CONFIG, f"{registry}/made:1")
    manifest = store.push(made.digest, f"{registry}/made:1")
    other = new_store(tmp_path / "other")
    seen: list[int] = []
    for name in (f"{registry}/made:1", f"{registry}/made@{manifest}"):
        pulled = other.pull(name, progress=lambda size, _: seen.append(size))
        assert (pulled.reference, pulled.digest, pulled.config) == (name, made.digest, CONFIG)
        assert other.find(name) is not None
    lower = other.lower_dirs(made.digest)
    assert [next(path.iterdir()).name for path in lower] == ["three", "two", "one"]
    assert other.shrink(0) == [made.digest]  # it can be had again
    again = other.pull(f"{registry}/made:1")
    assert again.digest == made.digest
    with pytest.raises(ImageNotFound):
        other.pull(f"{registry}/other:1")
    assert not list((tmp_path / "other/tmp").iterdir())


def test_a_push_that_cannot_be_is_refused_at_once_and_says_why(
    store: LayerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = store.add_image(saved(tmp_path / "saved.tar", layer_of(one=b"1")), "app")
    packed: list[str] = []

    def run(command: str, *args: Any, **options: Any) -> dict[str, Any]:
        packed.append(command)
        return run_layers(command, *args, **options)

    monkeypatch.setattr(sources, "run_layers", run)
    began = time.monotonic()
    with pytest.raises(Unavailable) as away:
        store.push(image.digest, "127.0.0.1:1/team/app:1")
    assert "refused" in away.value.message
    assert time.monotonic() - began < 5
    with pytest.raises(InvalidRequest) as short:
        store.push(image.digest, "127.0.0.1:1/a:1")
    assert (short.value.field, "between 2 and 255 characters" in short.value.message) == ("image", True)
    assert packed == ["may-push", "may-push"]


class _Guard(BaseHTTPRequestHandler):
    """Lets requests to a registry pass that have the right name and password."""

    registry = ""
    expected = f"Basic {base64.b64encode(b'ann:right').decode()}"

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        names = {"Accept": self.headers.get("Accept", "*/*")}
        with urlopen(Request(f"http://{self.registry}{self.path}", headers=names)) as answer:
            body = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            for name in ("Content-Type", "Docker-Content-Digest"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_private_image_comes_under_another_name(store: LayerStore, registry: str, tmp_path: Path) -> None:
    image = store.add_image(saved(tmp_path / "saved.tar", layer_of(one=b"private")), "app")
    store.push(image.digest, f"{registry}/private:1")
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Guard", (_Guard,), {"registry": registry})) as guard:
        threading.Thread(target=guard.serve_forever, daemon=True).start()
        reference = f"127.0.0.1:{guard.server_port}/private:1"
        with pytest.raises(PermissionDenied):
            store.push(image.digest, reference)
        other = new_store(tmp_path / "other")
        for credentials in (None, sources.Credentials("ann", "wrong")):
            with pytest.raises(ShoalError) as caught:
                other.pull(reference, credentials, name="shoal-images/x:im-1")
            assert "wrong" not in str(caught.value.to_dict())
        pulled = other.pull(reference, sources.Credentials("ann", "right"), name="shoal-images/x:im-1")
        assert (pulled.digest, pulled.reference) == (image.digest, "shoal-images/x:im-1")
        assert other.find(reference) is None
        with pytest.raises(ShoalError):  # nor does it make the reference another's
            other.pull(reference)
        assert other.shrink(0) == []  # nobody could fetch it again
        guard.shutdown()


def test_many_pull_one_image_at_once(store: LayerStore, registry: str, tmp_path: Path) -> None:
    layers = [layer_of(**{f"file{number}": os.urandom(100_000)}) for number in range(6)]
    image = store.add_image(saved(tmp_path / "saved.tar", *layers, layers[0]))
    store.push(image.digest, f"{registry}/many:1")
    other = new_store(tmp_path / "other")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(other.pull(f"{registry}/many:1").digest)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [image.digest] * 3
    assert len(other.lower_dirs(image.digest)) == 7
    assert len(list((tmp_path / "other/layers").iterdir())) == 6


def test_what_is_no_image_of_this_machine_is_refused(store: LayerStore, tmp_path: Path) -> None:
    good, wrong = layer_of(one=b"1"), "sha256:" + "0" * 64
    bad = [
        saved(tmp_path / "other-machine.tar", good, made_for="s390x"),
        saved(tmp_path / "wrong-digest.tar", good, promised=[wrong]),
        saved(tmp_path / "too-few.tar", good, promised=[digest(good), wrong]),
        saved(tmp_path / "hostile.tar", layer_of(**{"../out": b"x"})),
        saved(tmp_path / "no-tar.tar", b"garbage" * 1000),
        tmp_path / "missing.tar",
        tmp_path,
    ]
    for path in bad:
        with pytest.raises(InvalidRequest) as refused:
            store.add_image(path, "app")
        assert refused.value.field == "image", path
    assert store.images() == []
    assert not list((tmp_path / "store/tmp").iterdir())
    assert not [path for path in (tmp_path / "store/layers").iterdir() if path.name != digest(good)[7:]]


def test_a_registry_that_is_not_there(store: LayerStore) -> None:
    with pytest.raises(Unavailable):
        store.pull("127.0.0.1:1/app:1")


def test_as_many_layers_as_docker_allows_are_mounted() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # as short a path as the engine's own
        top = Path(directory)
        store = new_store(top / "oci")
        made = [layer_of(**{f"file{number}": b"x"}) for number in range(127)]
        image = store.add_image(saved(top / "saved.tar", *made), "many")
        point, upper, work = top / "point", top / "upper", top / "work"
        for path in (point, upper, work):
            path.mkdir()
        mounts.overlay(point, store.lower_dirs(image.digest), upper, work)
        try:
            assert len(list(point.iterdir())) == 127
        finally:
            mounts.detach(point)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        store = new_store(small / "store")
        with pytest.raises(ShoalError) as refused:
            LayerStore(small / "store", limit=1 << 30).add_image(
                saved(tmp_path / "big.tar", layer_of(f=os.urandom(4 << 20)))
            )
        assert isinstance(refused.value, QuotaExceeded)
        assert not list((small / "store/tmp").iterdir())
        assert not list((small / "store/layers").iterdir())
        little = store.add_image(saved(tmp_path / "little.tar", layer_of(f=b"1")), "little")
        upper = tmp_path / "upper"
        upper.mkdir()
        (upper / "f").write_bytes(os.urandom(4 << 20))
        with pytest.raises(QuotaExceeded):
            add_upper(store, little.digest, upper)
        assert not list((small / "store/tmp").iterdir())
        assert [image.digest for image in store.images()] == [little.digest]
        (upper / "f").write_bytes(b"2")
        assert add_upper(store, little.digest, upper).digest != little.digest
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_aws_gives_access_to_its_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with mock_aws():
        assert sources.in_registry("123456789012.dkr.ecr.eu-west-1.amazonaws.com/a:1").credentials.username == "AWS"
    assert (
        sources.in_registry("example.com/123456789012.dkr.ecr.eu-west-1.amazonaws.com/a:1").credentials.username == ""
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unavailable):
        sources.in_registry("123456789012.dkr.ecr.eu-west-1.amazonaws.com/a:1")
