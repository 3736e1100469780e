"""The layer store's files of an image that `docker save` wrote, against those of `docker export` of the same image."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from shoal.actors.engines.disks import mounts
from shoal.actors.engines.oci.layers import LayerStore
from tests.contract.engines.labs import DockerLab

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

# The tools are the machine's own, mounted: the image has none, so it is small.
BELOW = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/": "",
    "opt/gone": "x",
    "data/a/b/c": "y",
    "moved/d": "z",
}
CHANGES = """
set -e
rm -r /data/a/b
rm -r /opt && mkdir /opt && echo new > /opt/file
mkdir -p /srv/tree/deep && echo content > /srv/tree/deep/file
ln /srv/tree/deep/file /srv/tree/hard && ln -s ../deep /srv/tree/soft && ln -s /nowhere/at/all /srv/tree/dangling
chown 1234:5678 /srv/tree/deep/file && chmod 4751 /srv/tree/deep/file && chmod 1777 /srv/tree
truncate -s 64M /srv/sparse && printf end >> /srv/sparse
mkfifo /srv/pipe && touch -d '2001-02-03 04:05:06' /srv/tree/deep
touch "/srv/$(printf 'not-utf8-\\377')" && mv /moved /srv/moved
touch /srv/able && python3 -c "
import os
os.setxattr('/srv/able', 'security.capability', bytes.fromhex('$CAPABILITY'))"
"""
CAPABILITY = "0100000200200000" + "00" * 12  # cap_net_raw=ep, as `setcap` writes it
DOCKERS_OWN = {".dockerenv", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"}
NAME = "shoal-test-layers/files"


async def test_files_are_those_of_docker_export(docker_lab: DockerLab, tmp_path: Path) -> None:
    digest = await asyncio.to_thread(_make, docker_lab.client, tmp_path)
    store = LayerStore(tmp_path / "store")
    store.open()
    image = await asyncio.to_thread(store.add_image, tmp_path / "saved.tar")
    assert (image.digest, len(store.lower_dirs(digest))) == (digest, 2)
    found = await asyncio.to_thread(_of_layers, store, image.digest, tmp_path)
    wanted = _of_archive(tmp_path / "exported.tar")
    assert set(wanted) == set(found)
    assert {name: (wanted[name], found[name]) for name in wanted if wanted[name] != found[name]} == {}
    assert found["srv/sparse"]["size"] == (64 << 20) + 3
    assert found["srv/tree/hard"]["same as"] == "srv/tree/deep/file"
    assert found["srv/able"]["capability"].hex() == CAPABILITY
    assert "opt/gone" not in found
    assert "data/a" in found


def _make(client: APIClient, directory: Path) -> str:
    """Has Docker make an image of two layers, save it and export a container of it; its digest."""
    below = io.BytesIO()
    with tarfile.open(fileobj=below, mode="w") as archive:
        for name, content in BELOW.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            if name.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            elif content.startswith("usr/"):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content.encode()))
    client.import_image_from_data(below.getvalue(), repository=NAME, tag="1")
    usr = client.create_host_config(binds=["/usr:/usr:ro"], network_mode="none")
    made: list[str] = []
    try:
        first = client.create_container(
            f"{NAME}:1", ["/bin/sh", "-c", CHANGES], host_config=usr, environment={"CAPABILITY": CAPABILITY}
        )["Id"]
        made.append(first)
        client.start(first)
        assert client.wait(first)["StatusCode"] == 0, client.logs(first)
        digest = str(client.commit(first, repository=NAME, tag="2")["Id"])
        made.append(client.create_container(f"{NAME}:2", ["/none"], network_disabled=True)["Id"])
        for name, chunks in (("exported.tar", client.export(made[1])), ("saved.tar", client.get_image(digest))):
            with (directory / name).open("wb") as file:
                file.writelines(chunks)
        return digest
    finally:
        for container in made:
            client.remove_container(container, force=True)
        for tag in ("2", "1"):
            client.remove_image(f"{NAME}:{tag}", force=True)


def _is_dockers(name: str) -> bool:
    return name in DOCKERS_OWN or name.partition("/")[0] in ("dev", "proc", "sys", ".shoal")


def _of_archive(path: Path) -> Mapping[str, dict[str, Any]]:
    """What `docker export` says of every file."""
    found: dict[str, dict[str, Any]] = {}
    kinds = {tarfile.REGTYPE: stat.S_IFREG, tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK}
    kinds |= {tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK}
    same: dict[str, str] = {}
    with tarfile.open(path, errors="surrogateescape") as archive:
        for entry in archive:
            name = entry.name.removeprefix("./").rstrip("/")
            if not name or _is_dockers(name):
                continue
            if entry.type == tarfile.LNKTYPE:
                same[name] = same.get(entry.linkname, entry.linkname)
                continue
            content = archive.extractfile(entry) if entry.isreg() else None
            found[name] = {
                "kind": kinds[entry.type],
                "mode": entry.mode & 0o7777,
                "owner": (entry.uid, entry.gid),
                "mtime": int(entry.mtime),
                "size": entry.size if entry.isreg() else 0,
                "link": entry.linkname,
                "content": hashlib.file_digest(content, "sha256").hexdigest() if content else "",
                "capability": entry.pax_headers.get("SCHILY.xattr.security.capability", "").encode(
                    errors="surrogateescape"
                ),
                "same as": "",
            }
    groups: dict[str, set[str]] = {}
    for name, first in same.items():
        groups.setdefault(first, {first}).add(name)
    whole = found | {name: found[first] for name, first in same.items()}
    return whole | {name: {**found[first], "same as": min(group)} for first, group in groups.items() for name in group}


def _of_layers(store: LayerStore, digest: str, directory: Path) -> Mapping[str, dict[str, Any]]:
    """The same of the layers, mounted as a container's are."""
    point = Path("/tmp") / f"shoal-layers-{os.getpid()}"
    upper, work = directory / "upper", directory / "work"
    for path in (point, upper, work):
        path.mkdir()
    mounts.overlay(point, store.lower_dirs(digest), upper, work)
    try:
        return _of_directory(point)
    finally:
        mounts.detach(point)
        point.rmdir()


def _of_directory(top: Path) -> Mapping[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    groups: dict[int, set[str]] = {}
    for directory, names, files in os.walk(top):
        names.sort()
        for base in sorted([*names, *files]):
            path = os.path.join(directory, base)
            name = os.path.relpath(path, top)
            if _is_dockers(name):
                continue
            status = os.lstat(path)
            regular = stat.S_ISREG(status.st_mode)
            if regular and status.st_nlink > 1:
                groups.setdefault(status.st_ino, set()).add(name)
            found[name] = {
                "kind": stat.S_IFMT(status.st_mode),
                "mode": stat.S_IMODE(status.st_mode),
                "owner": (status.st_uid, status.st_gid),
                "mtime": int(status.st_mtime),
                "size": status.st_size if regular else 0,
                "link": os.readlink(path) if stat.S_ISLNK(status.st_mode) else "",
                "content": _hash(path) if regular else "",
                "capability": _capability(path) if regular else b"",
                "same as": "",
            }
    return found | {name: {**found[name], "same as": min(group)} for group in groups.values() for name in group}


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _capability(path: str) -> bytes:
    try:
        return os.getxattr(path, "security.capability")
    except OSError:
        return b""
