"""The file of APIs that a user knows."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shoal.client import config_file
from shoal.client.config_file import Config, ServerEntry
from shoal.model.errors import FailedPrecondition

URL = "https://shoal.example.org"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SHOAL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def write(text: str, mode: int = 0o600) -> Path:
    file = config_file.path()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


def test_where_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_file.path() == home / "config/shoal/config.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.setenv("HOME", str(home))
    assert config_file.path() == home / ".config/shoal/config.toml"
    monkeypatch.setenv("SHOAL_CONFIG", str(home / "other.toml"))
    assert config_file.path() == home / "other.toml"


def test_without_a_file_nothing_is_known() -> None:
    assert config_file.read() == Config()
    assert not config_file.remove(URL)
    assert not config_file.path().exists()


def test_what_is_put_is_read_again_by_its_owner_only() -> None:
    config_file.put(URL, "shoal_tk-1_x", default=True)
    config_file.put("http://127.0.0.1:8000", 'odd "\\\x7f\n token', ca="/ca ü.pem", default=False)
    known = config_file.read()
    assert known.default == URL
    assert known.servers == {
        URL: ServerEntry("shoal_tk-1_x"),
        "http://127.0.0.1:8000": ServerEntry('odd "\\\x7f\n token', "/ca ü.pem"),
    }
    assert stat.S_IMODE(config_file.path().stat().st_mode) == 0o600
    assert stat.S_IMODE(config_file.path().parent.stat().st_mode) == 0o700
    config_file.put(URL, "another", default=False)
    assert config_file.read().servers[URL].token == "another"
    assert config_file.read().default == URL


def test_a_new_token_leaves_the_ca() -> None:
    config_file.put(URL, "x", ca="/ca.pem", default=True)
    config_file.put(URL, "y", default=True)
    assert config_file.read().servers[URL] == ServerEntry("y", "/ca.pem")
    config_file.put(URL, "y", ca="/other.pem", default=True)
    assert config_file.read().servers[URL] == ServerEntry("y", "/other.pem")


def test_what_is_removed_is_no_default_any_more() -> None:
    config_file.put(URL, "x", default=True)
    config_file.put("http://b", "y", default=False)
    assert config_file.remove(URL)
    assert config_file.read() == Config(None, {"http://b": ServerEntry("y")})
    assert not config_file.remove(URL)


def test_a_link_is_followed_and_stays_one(home: Path) -> None:
    real = home / "real.toml"
    real.touch(0o600)
    config_file.path().parent.mkdir(parents=True)
    config_file.path().symlink_to(real)
    config_file.put(URL, "x", default=True)
    assert config_file.path().is_symlink()
    assert "x" in real.read_text()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_can_read_is_refused(mode: int) -> None:
    file = write("", mode)
    with pytest.raises(FailedPrecondition, match=f"chmod 600 {file}"):
        config_file.read()
    with pytest.raises(FailedPrecondition):
        config_file.put(URL, "x", default=True)


@pytest.mark.parametrize(
    "text",
    [
        "default = ",
        "default = 1",
        "defualt = 'x'",
        "servers = 1",
        "servers.x = 1",
        "[servers.'http://x']\ntokn = 'x'",
        "[servers.'http://x']\ntoken = 1",
        "#" * (2 << 20),
    ],
)
def test_a_file_that_makes_no_sense_is_named(text: str) -> None:
    file = write(text)
    with pytest.raises(FailedPrecondition, match=str(file)):
        config_file.read()


def test_bytes_that_are_no_text_are_told() -> None:
    write("").write_bytes(b"\xff\xfe")
    with pytest.raises(FailedPrecondition):
        config_file.read()


def test_a_directory_in_its_place_is_told() -> None:
    config_file.path().mkdir(parents=True)
    with pytest.raises(FailedPrecondition):
        config_file.read()


def test_a_place_that_cannot_be_written_is_told(home: Path) -> None:
    (home / "config").touch()
    with pytest.raises(FailedPrecondition):
        config_file.put(URL, "x", default=True)
