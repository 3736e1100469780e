"""The command line through the HTTP API: a real agent behind it, the rest of the cluster in memory."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.client import config_file
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.wire.agent import Start
from tests.command import Done, called
from tests.contract.client_relay import ClientLab, client_lab
from tests.terminal import COMMAND, terminal

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def lab() -> Iterator[ClientLab]:
    with client_lab("http") as made:
        yield made


@pytest.fixture(autouse=True)
def environment(lab: ClientLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who knows of no cluster yet; gives the file that `login` writes."""
    for name in [name for name in os.environ if name.startswith(("SHOAL_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SHOAL_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("SHOAL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "config.toml"


@pytest.fixture
def known(lab: ClientLab, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL, which the environment names, and its token."""
    assert lab.api is not None
    monkeypatch.setenv("SHOAL_URL", lab.api.url)
    monkeypatch.setenv("SHOAL_TOKEN", lab.token)
    return lab.api.url


def run(*arguments: str, stdin: bytes = b"") -> Done:
    if not {"run", "exec", "logs"} & set(arguments):
        return called(*arguments, stdin=stdin)
    done = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, check=False)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def good(*arguments: str, stdin: bytes = b"") -> str:
    """What it prints; it must succeed."""
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_login_and_logout(lab: ClientLab, environment: Path) -> None:
    assert lab.api is not None
    url = lab.api.url
    wrong = run("login", url, "--token-stdin", stdin=b"shoal_tk-aaaaaaaaaaaaaaaa_" + b"b" * 32)
    assert (wrong.returncode, environment.exists()) == (77, False)
    assert "does not take the token" in wrong.stderr
    assert run("login", url).returncode == 2  # no terminal to ask at
    told = run("login", f"{url}/", "--token-stdin", stdin=f"{lab.token}\n".encode())
    assert told.returncode == 0
    assert url in told.stderr
    assert lab.token not in told.stderr
    assert stat.S_IMODE(environment.stat().st_mode) == 0o600
    assert lab.sandbox.id in good("ls", "-q")
    assert f"Cluster at {url}" in good("status")
    assert good("logout") == ""
    assert run("status").returncode == 69
    assert run("ls").returncode == 78
    assert run("--url", url, "ls").returncode == 77


def test_login_asks_without_an_echo(lab: ClientLab, environment: Path) -> None:
    assert lab.api is not None
    with terminal("login", lab.api.url) as at:
        at.expect("Token for")
        at.type(f"{lab.token}\n")
        assert lab.token not in at.expect("accepts the token")
        assert at.exit_code() == 0
    assert lab.token in environment.read_text()


def test_options_go_before_the_environment(lab: ClientLab, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_URL", "http://127.0.0.1:1")
    assert run("ls").returncode == 69
    assert lab.sandbox.id in good("--url", known, "ls", "-q")
    monkeypatch.delenv("SHOAL_TOKEN")
    assert lab.sandbox.id in good("--url", known, "--token", lab.token, "ls", "-q")


def test_logout_forgets_the_one_that_is_named(environment: Path) -> None:
    for url in ("http://a:1", "http://b:1"):
        config_file.put(url, "x", default=True)
    good("--url", "http://a:1", "logout")
    assert config_file.read() == config_file.Config("http://b:1", {"http://b:1": config_file.ServerEntry("x")})


def test_sandboxes(lab: ClientLab, known: str) -> None:
    assert lab.sandbox.id in good("ls", "-q", "--state", "running")
    assert good("ls", "-q", "--state", "pending") == ""
    box = lab.sandbox.id
    assert good("exec", box, "sh", "-c", "echo out; cat", stdin=b"in") == "out\nin"
    failed = run("exec", box, "sh", "-c", "echo err >&2; exit 7")
    assert (failed.returncode, failed.stderr) == (7, "err\n")
    assert run("exec", box, "no-such-program").returncode == 127
    assert run("exec", "sb-none", "true").returncode == 66
    assert good("exec", box, "--", "echo", "hi") == "hi\n"
    late = run("exec", "--timeout", "0.2s", box, "sleep", "60")
    assert (late.returncode, late.stderr) == (124, "shoal: the command took longer than 0.2 s and was killed\n")
    # Gathered in one place so that the data really goes both ways.
    data = os.urandom(3_000_000)
    source, target = lab.agent_lab.directory / "source", lab.agent_lab.directory / "target"
    source.write_bytes(data)
    good("cp", "-q", str(source), f"{box}:{target}")
    assert target.read_bytes() == data
    good("cp", "-q", f"{box}:{target}", f"{source}.back")
    assert Path(f"{source}.back").read_bytes() == data


def test_status(known: str) -> None:
    told = json.loads(good("status", "--json"))
    assert (told["url"], told["running"], len(told["nodes"])) == (known, True, 1)
    assert known in good("status")


def test_status_with_a_token_of_one_environment(lab: ClientLab, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = json.loads(good("tokens", "create", "ours", "--environment", "main", "--scope", "read", "--json"))
    monkeypatch.setenv("SHOAL_TOKEN", made["token"])
    told = json.loads(good("status", "--json"))
    assert (told["url"], told["running"], told["nodes"], told["token"]["id"]) == (known, True, None, made["id"])
    shown = good("status")
    assert f"{made['id']} (ours: read in main)" in shown
    assert "of all environments" in shown


def test_status_of_one_that_is_away(known: str) -> None:
    done = run("--url", "http://127.0.0.1:1", "status", "--json")
    assert (done.returncode, json.loads(done.stdout)["running"]) == (69, False)
    assert "no API answers" in done.stderr


def test_what_is_evaluated_is_never_a_table(known: str) -> None:
    done = run("status", "--env")
    assert (done.returncode, done.stdout) == (2, "")
    assert known in done.stderr


def test_a_shell_at_a_terminal(lab: ClientLab, known: str) -> None:
    with terminal("shell", lab.sandbox.id) as at:
        at.expect("# ")
        at.type("PS1='$ '; tty; stty size; echo $TERM-$((6*7))\n")
        at.expect("/dev/pts/")
        at.expect("30 100")
        at.expect("xterm-42")
        at.resize(50, 132)
        at.type("while [ \"$(stty size)\" != '50 132' ]; do sleep 0.05; done; echo done-$((1+1))\n")
        at.expect("done-2")
        # Told by the program itself: a Ctrl-C between two commands is the shell's own, and the next one may start all
        # the same.
        at.type("sh -c 'echo begun-$((1+1)); exec sleep 100'\n")
        at.expect("begun-2")
        at.type("\x03")  # Ctrl-C is for the program inside; it also drops what was typed ahead
        at.expect("$ ")
        at.type("echo still-$((2+2))\n")
        at.expect("still-4")
        lab.interrupt()  # the connection breaks, the shell does not
        at.type("echo after-$((3+3))\n")
        at.expect("after-6")
        at.expect("$ ")
        at.type("(exit 9)\n")
        at.expect("$ ")
        # Ctrl-D ends it. Only at the prompt: one that comes before readline has the terminal is a NUL to it.
        at.type("\x04")
        assert at.exit_code() == 9


def test_tokens(known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = good("tokens", "create", "ci", "--environment", "dev", "--expires-in", "12h").strip()
    monkeypatch.setenv("SHOAL_TOKEN", text)
    assert good("ls", "-q") == ""
    refused = run("tokens", "ls")
    assert (refused.returncode, "admin" in refused.stderr) == (77, True)
    monkeypatch.undo()


def test_tokens_are_listed_and_revoked(lab: ClientLab, known: str) -> None:
    made = json.loads(good("tokens", "create", "old", "--scope", "read", "--json"))
    assert made["token"].startswith("shoal_tk-")
    rows = good("tokens", "ls").splitlines()
    assert rows[0].split()[:4] == ["ID", "NAME", "ENVIRONMENT", "SCOPE"]
    assert any(row.split()[:4] == [made["id"], "old", "main", "read"] for row in rows)
    assert made["token"] not in "".join(rows)
    assert made["id"] in run("tokens", "rm", made["id"]).stderr
    assert made["id"] not in good("tokens", "ls")
    assert made["id"] in good("tokens", "ls", "--all")
    assert run("tokens", "rm", "tk-none").returncode == 66
    wrong = run("tokens", "create", "x", "--scope", "root")
    assert (wrong.returncode, "read, run or admin" in wrong.stderr) == (2, True)


def test_environments(known: str) -> None:
    made = json.loads(good("environments", "create", "team", "--sandboxes", "5", "--memory", "2g", "--json"))
    assert made["quota"] == {"sandboxes": 5, "cpu": None, "memory": 2048, "creates_per_minute": None} | {
        "volume_bytes": None,
        "volume_files": None,
    }
    assert "0 of 5" in good("environments", "ls")
    good("environments", "quota", "team", "--cpu", "1.5")
    (team,) = [each for each in json.loads(good("environments", "ls", "--json")) if each["name"] == "team"]
    assert (team["quota"]["sandboxes"], team["quota"]["cpu"]) == (None, 1.5)
    assert run("environments", "create", "team").returncode == 73
    good("environments", "rm", "team")
    assert run("environments", "rm", "team").returncode == 66
    assert run("environments", "rm", "main").returncode == 2


def test_audit_and_events(lab: ClientLab, known: str) -> None:
    good("tokens", "create", "for-the-log")
    wanted = "token.create"
    deadline = time.monotonic() + 20
    while wanted not in (shown := good("audit")):  # replicas tell the cluster now and then
        assert time.monotonic() < deadline, shown
    assert wanted in {entry["action"] for entry in json.loads(good("audit", "-n", "5", "--json"))}
    first = good("events", "--no-follow", "--json").splitlines()[0]
    assert json.loads(first)["sandbox_id"] == lab.sandbox.id
    with terminal("events", "--after", "0") as at:
        at.expect(lab.sandbox.id)
        at.type("\x03")
        assert at.exit_code() == 130


def test_logs_hold_nobody_up(lab: ClientLab, known: str, tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    script = f"seq 3; while [ ! -e {go} ]; do sleep 0.01; done; seq 4 1000000; touch {done}; seq 3 >&2"
    agent = lab.do(lab.cluster.agent(lab.sandbox.id))
    lab.do(agent.exec(Start("p-main", ["sh", "-c", script]), tail=True, stdin=False))
    following = subprocess.Popen(
        [*COMMAND, "logs", "-f", lab.sandbox.id], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with following:
        assert following.stdout is not None
        begin = "".join(following.stdout.readline() for _ in range(3))
        assert begin == "1\n2\n3\n"
        go.touch()
        deadline = time.monotonic() + 20
        while not done.exists():  # and nobody reads
            assert time.monotonic() < deadline, "it waits for its reader"
            time.sleep(0.01)
        out, err = following.communicate(timeout=60)
    assert following.returncode == 0
    told = [line for line in err.splitlines() if line.startswith("shoal: ")]
    assert [line for line in err.splitlines() if line not in told] == ["1", "2", "3"]
    missed = sum(int(line.split()[1]) for line in told)
    assert missed > 0
    assert len(begin) + len(out) + missed == sum(len(f"{number}\n") for number in range(1, 1_000_001))
    assert out.endswith("999999\n1000000\n")
    assert good("logs", lab.sandbox.id).endswith("\n1000000\n")


def test_empty_states_say_what_to_do(lab: ClientLab, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = lab.do(lab.cluster.ask(verbs.create_token, "dev", "dev", Scope.READ, None))
    monkeypatch.setenv("SHOAL_TOKEN", text)
    assert good("events", "--no-follow") == ""
    listed = good("ls")
    assert listed.splitlines()[0].startswith("ID")


def test_one_without_a_command_has_a_number_once_it_has_ended(known: str) -> None:
    made = good("run", "-d", "shoal/base").strip()
    good("rm", made)
    (told,) = [each for each in json.loads(good("ls", "--all", "--json")) if each["id"] == made]
    assert (told["reason"], told["returncode"]) == ("terminated", 137)


def test_pools_are_made_listed_resized_and_deleted(known: str) -> None:
    made = good(
        "pool", "create", "cli", "shoal/base", "--min", "0", "--max", "4", "--memory", "64:300", "--timeout", "9m"
    )
    assert made == ""
    (pool,) = json.loads(good("pool", "ls", "--json"))
    assert (pool["name"], pool["max_ready"], pool["spec"]["memory"]) == ("cli", 4, [64, 300])
    assert (pool["spec"]["timeout"], pool["use"]["ready"]) == (540, 0)
    assert "cli" in good("pool", "ls")
    assert json.loads(good("pool", "resize", "cli", "--min", "0", "--max", "7", "--json"))["max_ready"] == 7
    assert run("pool", "resize", "cli", "--min", "3", "--max", "2").returncode == 2
    assert run("pool", "rm", "none").returncode == 66
    good("pool", "rm", "cli")
    assert json.loads(good("pool", "ls", "--json")) == []


def test_images_are_taken_listed_named_and_deleted(lab: ClientLab, known: str) -> None:
    source = lab.sandbox.id
    image = good("image", "snapshot", source, "--name", "cli:v1", "--ttl", "1h").strip()
    assert good("image", "ls", "-q", "--name", "cli") == f"{image}\n"
    assert image in good("image", "ls")
    shown = json.loads(good("image", "show", "cli:v1"))
    assert (shown["id"], shown["sandbox_id"], shown["kind"]) == (image, source, "snapshot")
    assert json.loads(good("image", "tag", "cli:v1", "cli:v2", "--json"))["name"] == "cli:v2"
    assert run("image", "show", "cli:v1").returncode == 66
    other = good("image", "snapshot", source).strip()
    assert good("image", "gc", "--dry-run") == good("image", "gc") == f"{other}\n"
    assert run("image", "tag", image, "UP").returncode == 2
    good("image", "rm", image)
    assert json.loads(good("image", "ls", "--json")) == []
