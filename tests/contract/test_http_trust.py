"""Which addresses and tokens the HTTP transport takes, and whom it trusts over TLS."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from shoal.model import verbs
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unauthenticated, Unavailable
from shoal.transport.http import HttpTransport
from tests.contract.http_peer import INFO, SELF, answer, raw, sandbox, serving
from tests.contract.tls_files import Authority

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
TOKEN = "shoal_tk-1_secret"


@pytest.mark.parametrize("token", ["", "with space", "line\n", "ünicode", "x" * 5000])
async def test_what_is_no_token_is_not_even_sent(token: str) -> None:
    with pytest.raises(Unauthenticated):
        HttpTransport("http://127.0.0.1:1", token)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://user:pw@host",
        "http://host:99999",
        "http://host/?x=1",
        "http://ho st/",
        "http://[::1",
    ],
)
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        HttpTransport(url, TOKEN)
    assert caught.value.field == "address"
    assert "pw" not in str(caught.value)


async def test_tls_with_a_ca_of_its_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(answer(SELF), sandbox(), tls=authority.server()) as peer:
        with pytest.raises(FailedPrecondition, match="SHOAL_CA"):
            await HttpTransport.open(peer.url, TOKEN)
        assert peer.asked == []
        transport = await HttpTransport.open(peer.url, TOKEN, str(authority.certificate))
        assert await transport.ask(verbs.get, "sb-1") is not INFO
        await transport.close()
        with pytest.raises(FailedPrecondition, match=r"use a host name that it has") as caught:  # the right CA
            await HttpTransport.open(peer.url.replace("127.0.0.1", "localhost"), TOKEN, str(authority.certificate))
        assert "SHOAL_CA" not in caught.value.message


async def test_a_certificate_that_has_expired_is_not_mended_by_a_ca(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.expire()
    async with serving(answer(SELF), tls=authority.server()) as peer:
        with pytest.raises(FailedPrecondition, match=r"expired.*renewed") as caught:
            await HttpTransport.open(peer.url, TOKEN, str(authority.certificate))
    assert "SHOAL_CA" not in caught.value.message


async def test_the_wrong_scheme_is_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def bad_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(raw(b"Invalid HTTP request", 400))
        writer.close()

    plain = await asyncio.start_server(bad_request, "127.0.0.1", 0)
    with pytest.raises(FailedPrecondition, match="is it http://") as caught:
        await HttpTransport.open(f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}", TOKEN)
    assert "Cannot connect" not in caught.value.message  # it did
    plain.close()
    async with serving(answer(SELF), tls=authority.server()) as peer:
        with pytest.raises(Unavailable, match="https://"):
            await HttpTransport.open(peer.url.replace("https", "http"), TOKEN)


@pytest.mark.parametrize("content", [None, b"no certificate"])
async def test_a_ca_that_is_none_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        HttpTransport("https://host", TOKEN, str(file))
    assert caught.value.field == "ca"


def test_certificates_are_checked_by_default() -> None:
    context = HttpTransport("https://host", TOKEN).calls.server.tls
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
