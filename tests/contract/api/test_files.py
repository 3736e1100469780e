"""Files over HTTP, through a real relay and a real agent."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from tests.contract.api.lab import Lab, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
BIG = 100 << 20


@pytest.fixture
def ten(place: Lab) -> Path:
    """A file of ten bytes."""
    path = place.directory / "ten"
    path.write_bytes(b"0123456789")
    return path


def content(path: Path) -> bytes:
    return path.read_bytes()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_files_act_as_a_user(place: Lab, ten: Path) -> None:
    os.chmod(ten, 0o600)
    os.chmod(place.directory.parent, 0o755)
    denied = (403, "permission_denied", "path")
    nobody = f"path={ten}&user=65534"
    for method in ("GET", "PUT", "DELETE"):
        assert await place.problem(method, f"/files?{nobody}") == denied
    assert await place.problem("PUT", f"/archive?path={place.directory}/new&user=65534") == denied
    assert await place.problem("POST", "/mkdir", json={"path": f"{place.directory}/new", "user": "65534"}) == denied
    os.chmod(place.directory, 0o700)
    for route in ("entries", "stat", "archive", "watch"):
        assert await place.problem("GET", f"/{route}?{nobody}") == denied
    move = {"path": str(ten), "to": f"{ten}-moved", "user": "65534"}
    assert await place.problem("POST", "/move", json=move) == denied
    assert await place.problem("GET", f"/files?path={ten}&user=none-such") == (404, "user_not_found", "user")
    assert (await get(place, ten))[0] == 200


async def get(place: Lab, path: Path, *, method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with place.http.request(method, f"{place.at}/files", params={"path": str(path)}, headers=sent) as answer:
        return answer.status, await answer.read(), answer.headers


async def put(place: Lab, path: Path, data: Any, **params: str) -> int:
    async with place.http.put(f"{place.at}/files", params={"path": str(path), **params}, data=data) as answer:
        said = await answer.json(content_type=None)
        assert answer.status == 200, said
        return int(said["size"])


async def test_down_and_up(place: Lab, ten: Path) -> None:
    status, data, headers = await get(place, ten)
    assert (status, data, headers["Content-Length"]) == (200, b"0123456789", "10")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == "attachment"
    assert headers["Accept-Ranges"] == "bytes"
    assert await put(place, ten, b"abc", mode="600") == 3
    assert (content(ten), mode(ten)) == (b"abc", 0o600)
    assert await put(place, ten, b"", append="true") == 0
    assert await put(place, ten, b"def", append="true") == 3
    assert content(ten) == b"abcdef"
    deep = place.directory / "a" / "b" / "new"
    assert await place.problem("PUT", f"/files?path={deep}", data=b"x") == (404, "path_not_found", "path")
    await put(place, deep, b"x", parents="true")
    assert (deep.read_bytes(), deep.stat().st_mode & 0o777) == (b"x", 0o644)
    async with place.http.delete(f"{place.at}/files", params={"path": str(deep)}) as answer:
        assert answer.status == 204
    assert not deep.exists()
    status, code, _ = await place.problem("DELETE", f"/files?path={deep.parents[1]}")
    assert (status, code) == (409, "failed_precondition")


async def test_empty_and_endless_files(place: Lab) -> None:
    empty = place.directory / "empty"
    assert await put(place, empty, b"") == 0
    status, data, headers = await get(place, empty)
    assert (status, data, headers["Content-Length"]) == (200, b"", "0")
    status, data, headers = await get(place, Path("/proc/version"))
    assert (status, data[:5], "Content-Length" in headers) == (200, b"Linux", False)
    status, _, headers = await get(place, empty, Range="bytes=0-")
    assert (status, headers["Content-Range"]) == (416, "bytes */0")


@pytest.mark.parametrize(
    ("asked", "expected", "content_range"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=2-5", b"2345", "bytes 2-5/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=7-99", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ("bytes=0-1,4-5", b"0123456789", None),
        ("bytes=5-2", b"0123456789", None),
        ("lines=1-2", b"0123456789", None),
        ("bytes=-", b"0123456789", None),
        ("bytes=x-y", b"0123456789", None),
        ("bytes=10-", b"", "bytes */10"),
        ("bytes=-0", b"", "bytes */10"),
        ("bytes=9999999999999999999-", b"", "bytes */10"),
    ],
)
async def test_ranges(place: Lab, ten: Path, asked: str, expected: bytes, content_range: str | None) -> None:
    status, data, headers = await get(place, ten, Range=asked)
    assert headers.get("Content-Range") == content_range
    if expected:
        assert (status, data) == (206 if content_range else 200, expected)
        assert headers["Content-Length"] == str(len(expected))
    else:
        assert status == 416
        assert json.loads(data)["code"] == "invalid_request"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_no_file_is_refused(place: Lab, method: str) -> None:
    pipe = place.directory / "pipe"
    os.mkfifo(pipe)
    status, _, _ = await get(place, pipe, method=method)
    assert status == 400


async def test_conditions(place: Lab, ten: Path) -> None:
    status, data, first = await get(place, ten, method="HEAD")
    assert (status, data, first["Content-Length"]) == (200, b"", "10")
    tag, date = first["ETag"], first["Last-Modified"]
    assert tag.startswith('W/"')
    for condition in ({"If_None_Match": f'"x", {tag}'}, {"If_None_Match": "*"}, {"If_Modified_Since": date}):
        status, data, headers = await get(place, ten, **condition)
        assert (status, data, headers["ETag"]) == (304, b"", tag)
    for condition in ({"If_None_Match": '"x"'}, {"If_Modified_Since": "Mon, 01 Jan 2001 00:00:00 GMT"}):
        assert (await get(place, ten, **condition))[0] == 200
    for condition, expected in ((tag, 206), (date, 206), ('W/"x"', 200), ("nonsense", 200)):
        assert (await get(place, ten, Range="bytes=0-1", If_Range=condition))[0] == expected
    status, _, headers = await get(place, ten, method="HEAD", Range="bytes=2-3")
    assert (status, headers["Content-Length"], headers["Content-Range"]) == (206, "2", "bytes 2-3/10")
    fill(ten, b"9876543210!")
    assert (await get(place, ten, Range="bytes=0-1", If_Range=tag))[:2] == (200, b"9876543210!")


async def test_what_is_wrong_with_a_path(place: Lab, ten: Path) -> None:
    assert await place.problem("GET", "/files?path=relative") == (400, "relative_path", "path")
    for path in ("", "/a%00b", "/" + "x" * 4096):
        assert await place.problem("GET", str(URL(f"/files?path={path}", encoded=True))) == (
            400,
            "invalid_request",
            "path",
        )
    assert await place.problem("GET", "/files") == (400, "invalid_request", "path")
    assert (await place.problem("GET", "/files?path=/none"))[:2] == (404, "path_not_found")
    assert await place.problem("GET", f"/files?path={place.directory}") == (400, "is_a_directory", "path")
    assert await place.problem("PUT", f"/files?path={place.directory}", data=b"x") == (400, "is_a_directory", "path")
    assert (await place.problem("GET", f"/files?path={ten}/below")) == (400, "not_a_directory", "path")
    assert await place.problem("PUT", f"/files?path={ten}&mode=8", data=b"x") == (400, "invalid_request", "mode")
    assert await place.problem("PUT", f"/files?path={ten}&other=8", data=b"x") == (400, "invalid_request", "other")
    assert content(ten) == b"0123456789"


async def test_names_that_are_not_utf8(place: Lab) -> None:
    raw = os.fsencode(place.directory) + b"/\xff\xe4 \xc3\xa4+"
    url = URL(f"{place.at}/files?path={quote(raw)}", encoded=True)
    async with place.http.put(url, data=b"odd") as answer:
        assert answer.status == 200
    async with place.http.get(url) as answer:
        assert await answer.read() == b"odd"
    async with place.http.get(f"{place.at}/entries", params={"path": str(place.directory)}) as answer:
        (entry,) = (await answer.json())["entries"]
    assert (entry["kind"], entry["size"]) == ("file", 3)
    async with place.http.post(
        f"{place.at}/move", json={"path": entry["path"], "to": f"{place.directory}/plain"}
    ) as answer:
        assert answer.status == 204
    assert os.listdir(os.fsencode(place.directory)) == [b"plain"]


async def test_arranging(place: Lab) -> None:
    at = place.directory / "d"
    async with place.http.post(f"{place.at}/mkdir", json={"path": f"{at}/e", "parents": True, "mode": "700"}) as answer:
        assert answer.status == 204
    assert (at / "e").stat().st_mode & 0o777 == 0o700
    assert (await place.problem("POST", "/mkdir", json={"path": f"{at}/e"}))[:2] == (409, "already_exists")
    (at / "link").symlink_to("e")
    (at / "file").write_bytes(b"12")
    async with place.http.get(f"{place.at}/entries", params={"path": str(at)}) as answer:
        entries = (await answer.json())["entries"]
    assert [(e["name"], e["kind"], e["target"]) for e in entries] == [
        ("e", "dir", None),
        ("file", "file", None),
        ("link", "link", "e"),
    ]
    for follow, kind in (("true", "dir"), ("false", "link")):
        async with place.http.get(f"{place.at}/stat", params={"path": f"{at}/link", "follow": follow}) as answer:
            assert (await answer.json())["kind"] == kind
    body = {"path": f"{at}/file", "to": f"{at}/e/there"}
    async with place.http.post(f"{place.at}/move", json=body) as answer:
        assert answer.status == 204
    assert (await place.problem("POST", "/move", json=body))[:2] == (404, "path_not_found")
    for wrong in (
        {"path": "/a"},
        {"path": 1, "to": "/b"},
        {"path": {"b64": "/"}, "to": "/b"},
    ):
        assert (await place.problem("POST", "/move", json=wrong))[:2] == (400, "invalid_request")
    relative = {"path": "/a", "to": "b"}
    assert await place.problem("POST", "/move", json=relative) == (400, "relative_path", "to")


# Large ones, and clients that leave


async def test_a_large_file_up_and_down(place: Lab) -> None:
    path = place.directory / "big"
    block = os.urandom(1 << 20)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(BIG >> 20):
            yield block

    assert await put(place, path, blocks()) == BIG
    wanted = hashlib.sha256(block * (BIG >> 20)).digest()
    assert hashlib.sha256(path.read_bytes()).digest() == wanted
    found = hashlib.sha256()
    async with place.http.get(f"{place.at}/files", params={"path": str(path)}) as answer:
        async for piece in answer.content.iter_any():
            found.update(piece)
    assert found.digest() == wanted
    status, data, _ = await get(place, path, Range=f"bytes={BIG - 5}-")
    assert (status, data) == (206, block[-5:])


async def test_half_an_upload_leaves_the_old_file(place: Lab, ten: Path) -> None:
    sent = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b"x" * 300_000
        sent.set()
        await asyncio.Event().wait()

    uploading = asyncio.ensure_future(put(place, ten, half()))
    await sent.wait()

    async def begun() -> bool:
        return len(os.listdir(place.directory)) == 2

    async def gone() -> bool:
        return os.listdir(place.directory) == ["ten"] and await place.open_streams() == 0

    await until(begun, "the upload has begun")
    uploading.cancel()
    await asyncio.wait([uploading])
    await until(gone, "nothing is left of it")
    assert content(ten) == b"0123456789"


async def test_a_download_that_is_given_up(place: Lab) -> None:
    path = place.directory / "big"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    async with place.http.get(f"{place.at}/files", params={"path": str(path)}) as answer:
        await answer.content.readexactly(100_000)
        assert await place.open_streams() == 1

    async def gone() -> bool:
        return await place.open_streams() == 0

    await until(gone, "the agent stops reading")


async def test_a_download_goes_on_after_the_relay_was_restarted(place: Lab) -> None:
    path = place.directory / "big"
    data = os.urandom(20 << 20)
    path.write_bytes(data)
    async with place.http.get(f"{place.at}/files", params={"path": str(path)}) as answer:
        begin = await answer.content.readexactly(100_000)
        await place.agent_lab.relay.kill()
        await place.agent_lab.relay.start()
        assert begin + await answer.read() == data


async def test_a_file_that_is_replaced_meanwhile_is_not_mixed_up(place: Lab) -> None:
    path = place.directory / "big"
    path.write_bytes(b"a" * (20 << 20))
    async with place.http.get(f"{place.at}/files", params={"path": str(path)}) as answer:
        await answer.content.readexactly(100_000)
        other = place.directory / "other"
        other.write_bytes(b"b" * (20 << 20))
        await place.agent_lab.relay.kill()
        other.rename(path)
        await place.agent_lab.relay.start()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    path.write_bytes(b"c" * (20 << 20))
    async with place.http.get(f"{place.at}/files", params={"path": str(path)}) as answer:
        await answer.content.readexactly(100_000)
        os.truncate(path, 200_000)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_an_upload_that_is_refused_on_its_way(place: Lab) -> None:
    limited = aiohttp.ClientTimeout(total=20)
    async with place.http.put(
        f"{place.at}/files", params={"path": "/proc/none"}, data=io.BytesIO(b"x" * 5_000_000), timeout=limited
    ) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) in (
            (403, "permission_denied"),
            (404, "path_not_found"),
        )
    assert await place.open_streams() == 0


# Archives and changes


async def test_archives(place: Lab) -> None:
    tree = place.directory / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(b"content" * 100_000)
    (tree / "link").symlink_to("sub/file")
    async with place.http.get(f"{place.at}/archive", params={"path": str(tree)}) as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-tar")
        packed = await answer.read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert {m.name for m in tar} >= {"sub", "sub/file", "link"}
    copy = place.directory / "copy"
    async with place.http.put(f"{place.at}/archive", params={"path": str(copy)}, data=packed) as answer:
        assert await answer.json() == {"files": 2, "bytes": 700_000}
    assert (copy / "link").read_bytes() == b"content" * 100_000
    assert (await place.problem("GET", "/archive?path=/none"))[:2] == (404, "path_not_found")
    bad = io.BytesIO()
    with tarfile.open(fileobj=bad, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../out"))
    status, code, _ = await place.problem("PUT", f"/archive?path={copy}", data=bad.getvalue())
    assert (status, code) == (400, "invalid_request")
    assert not (place.directory / "out").exists()


async def test_watching(place: Lab) -> None:
    async with place.http.get(f"{place.at}/watch", params={"path": str(place.directory)}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert await answer.content.readline() == b": watching\n"
        (place.directory / "new").write_bytes(b"x")
        kinds = set()
        while kinds != {"created", "modified"}:
            line = await answer.content.readline()
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                assert event["path"] == f"{place.directory}/new"
                kinds.add(event["kind"])

    async def gone() -> bool:
        return await place.open_streams() == 0

    await until(gone, "nobody watches any more")
    assert (await place.problem("GET", "/watch?path=/none"))[:2] == (404, "path_not_found")
