"""Registries on this machine: one that has no image, so that what is not there is so without the internet, too; and one
that has a single image, for who has its credentials."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from shoal.actors.engines.oci.layers.config_blob import architecture


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({} if self.path == "/v2/" else {"errors": [{"code": "MANIFEST_UNKNOWN"}]}).encode()
        self.send_response(200 if self.path == "/v2/" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def empty_registry() -> Iterator[str]:
    """The address of one, as it stands before the name of an image."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


PRIVATE_USER, PRIVATE_PASSWORD = "ann", "right"


class _PrivateHandler(_Handler):
    """Basic authentication, and the parts of one image by their paths."""

    parts: ClassVar[Mapping[str, tuple[str, bytes]]] = {}

    def do_GET(self) -> None:
        expected = base64.b64encode(f"{PRIVATE_USER}:{PRIVATE_PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {expected}":
            self._answer(401, "application/json", b"{}", {"WWW-Authenticate": 'Basic realm="tests"'})
        elif self.path == "/v2/":
            self._answer(200, "application/json", b"{}")
        elif (part := self.parts.get(self.path)) is not None:
            self._answer(200, *part)
        else:
            self._answer(404, "application/json", b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')

    def _answer(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(len(body)), "Docker-Content-Digest": _digest(body)}
        for name, value in {**told, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def private_registry(name: str, **files: str) -> Iterator[str]:
    """The reference of an image `name:1` with these files at its top, which only who has the credentials gets."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    layer = gzip.compress(out.getvalue(), mtime=0)
    root = {"type": "layers", "diff_ids": [_digest(out.getvalue())]}
    config = json.dumps({"architecture": architecture(), "os": "linux", "config": {}, "rootfs": root}).encode()
    kind = "application/vnd.docker.{}"
    blobs = {kind.format("container.image.v1+json"): config, kind.format("image.rootfs.diff.tar.gzip"): layer}
    described = [{"mediaType": media, "size": len(blob), "digest": _digest(blob)} for media, blob in blobs.items()]
    media = kind.format("distribution.manifest.v2+json")
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": media, "config": described[0], "layers": described[1:]}
    ).encode()
    parts = {f"/v2/{name}/blobs/{_digest(blob)}": ("application/octet-stream", blob) for blob in blobs.values()}
    parts |= {f"/v2/{name}/manifests/{each}": (media, manifest) for each in ("1", _digest(manifest))}
    handler = type("Private", (_PrivateHandler,), {"parts": parts})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/{name}:1"
        server.shutdown()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
