"""`shoal login` to an API whose certificate is of a CA of its own: what is to be trusted is named once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shoal.client import config_file
from tests.contract.http_peer import SELF, HttpPeer, answer, serving
from tests.contract.tls_files import Authority
from tests.terminal import COMMAND

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
TOKEN = "shoal_tk-1_secret"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Of a user who knows of no cluster yet."""
    for name in ("SHOAL_URL", "SHOAL_TOKEN", "SHOAL_CA", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHOAL_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("SHOAL_STATE_DIR", str(tmp_path / "state"))
    return Authority(tmp_path)


async def shoal(*arguments: str, cwd: Path | None = None) -> tuple[int, str]:
    """Its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate(f"{TOKEN}\n".encode())
    assert process.returncode is not None
    return process.returncode, said.decode()


async def login(peer: HttpPeer, *before: str, cwd: Path | None = None) -> tuple[int, str]:
    return await shoal(*before, "login", peer.url, "--token-stdin", cwd=cwd)


def known(peer: HttpPeer) -> config_file.ServerEntry | None:
    return config_file.read().servers.get(peer.url)


async def test_without_its_ca_all_ways_to_name_it_are_told(authority: Authority) -> None:
    async with serving(answer(SELF), tls=authority.server()) as peer:
        code, said = await login(peer)
        assert (code, known(peer)) == (78, None)
        assert "--ca" in said
        assert "SHOAL_CA" in said


async def test_the_ca_of_the_environment_is_trusted_and_kept(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_CA", authority.certificate.name)  # from where it stands
    async with serving(answer(SELF), tls=authority.server()) as peer:
        code, said = await login(peer, cwd=authority.certificate.parent)
        assert code == 0, said
        assert known(peer) == config_file.ServerEntry(TOKEN, str(authority.certificate))


async def test_a_new_token_needs_the_ca_no_second_time(authority: Authority) -> None:
    async with serving(answer(SELF), tls=authority.server()) as peer:
        config_file.put(peer.url, "old", ca=str(authority.certificate), default=True)
        code, said = await login(peer)
        assert code == 0, said
        assert known(peer) == config_file.ServerEntry(TOKEN, str(authority.certificate))
        assert (await login(peer, "--ca", "/no/such/file"))[0] == 2
