"""The HTTP transport by way of a proxy: which one is asked, and what is told where it lets nothing through."""

from __future__ import annotations

import pytest

from shoal.model import verbs
from shoal.model.errors import InvalidRequest, Unavailable
from shoal.transport.http import HttpTransport
from tests.contract.http_peer import no_host_is_known, raw, sandbox, serving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
TOKEN = "shoal_tk-1_secret"
PASSWORD = "p4ssw0rd"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names none."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)


async def test_a_proxy_is_asked_unless_the_server_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(sandbox()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        transport = HttpTransport("http://shoal.invalid:8000", TOKEN)
        await transport.ask(verbs.get, "sb-1")
        await transport.close()
        assert proxy.asked[0].path == "http://shoal.invalid:8000/v1/sandboxes/sb-1"
        async with serving(sandbox()) as here:
            transport = HttpTransport(here.url, TOKEN)
            await transport.ask(verbs.get, "sb-1")
            await transport.close()
            assert len(here.asked) == 1
        monkeypatch.setenv("no_proxy", "shoal.invalid")
        assert HttpTransport("http://shoal.invalid:8000", TOKEN).calls.server.proxy is None


async def test_a_proxy_that_refuses_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(raw(b"not for you", 407)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("://", f"://me:{PASSWORD}@"))
        with pytest.raises(Unavailable, match=r"\(HTTP 407\); NO_PROXY") as caught:
            await HttpTransport.open("https://shoal.invalid", TOKEN)
    assert [asked.method for asked in proxy.asked] == ["CONNECT"]
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_away_is_told_without_its_password(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:{PASSWORD}@127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"the proxy on the way .* does not let through") as caught:
        await HttpTransport.open(f"{scheme}://shoal.invalid", TOKEN)
    assert PASSWORD not in str(caught.value)
    assert "ssl:" not in str(caught.value)  # the library's own words, wrong ones for a proxy


async def test_a_proxy_that_has_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    no_host_is_known(monkeypatch)
    monkeypatch.setenv("http_proxy", f"http://me:{PASSWORD}@proxy.invalid:3128")
    with pytest.raises(Unavailable, match=r"there is no host proxy\.invalid") as caught:
        await HttpTransport.open("http://shoal.invalid", TOKEN)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "ftp"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
async def test_nothing_is_sent_to_a_proxy_of_another_kind(
    variable: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(sandbox()) as proxy:
        monkeypatch.setenv(variable, proxy.url.replace("http://", f"{scheme}://me:{PASSWORD}@"))
        with pytest.raises(InvalidRequest, match=f"^{variable.upper()}: .* NO_PROXY=shoal.invalid") as caught:
            await HttpTransport.open("http://shoal.invalid:8000", TOKEN)
        assert (caught.value.field, proxy.asked) == ("proxy", [])
        assert PASSWORD not in str(caught.value)
        monkeypatch.setenv("http_proxy", proxy.url)  # the one for the scheme goes first
        transport = HttpTransport("http://shoal.invalid:8000", TOKEN)
        await transport.ask(verbs.get, "sb-1")
        await transport.close()


@pytest.mark.parametrize(
    "proxy", ["http://", f"me:{PASSWORD}@host:port", f"http://me:{PASSWORD}@[::1", f"me:{PASSWORD}@a b:1"]
)
async def test_a_proxy_that_is_no_url_is_told_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(InvalidRequest, match=r"^HTTPS_PROXY: ") as caught:
        await HttpTransport.open("https://shoal.invalid", TOKEN)
    assert caught.value.field == "proxy"
    assert PASSWORD not in str(caught.value)
