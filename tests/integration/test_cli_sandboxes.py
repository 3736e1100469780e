"""The command line on a real cluster, as a shell and as a terminal sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from tests.cluster import Cluster
from tests.command import called
from tests.registry import empty_registry
from tests.terminal import COMMAND, terminal

pytestmark = pytest.mark.engine


def run(*arguments: str, stdin: bytes | None = None, timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
    if not {"run", "exec", "logs", "shell"} & set(arguments):
        done = called(*arguments, stdin=stdin or b"")
        return subprocess.CompletedProcess(arguments, done.returncode, done.stdout.encode(), done.stderr.encode())
    return subprocess.run([*COMMAND, *arguments], input=stdin or b"", capture_output=True, timeout=timeout, check=False)


def living() -> list[str]:
    """Names or ids of all that live, but for the module's own."""
    return [sandbox.name or sandbox.id for sandbox in shoal.Sandbox.list() if sandbox.name != "box"]


@pytest.fixture(scope="module")
def box(cluster: Cluster) -> Iterator[shoal.Sandbox]:
    with shoal.Sandbox.create(name="box") as sandbox:
        yield sandbox


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -TERM $$", 143)])
def test_run_exits_as_its_command_did(cluster: Cluster, script: str, code: int) -> None:
    assert run("run", "shoal/base", "sh", "-c", script).returncode == code


def test_run_keeps_the_streams_apart_and_every_byte(cluster: Cluster) -> None:
    script = (
        "import os; d = bytes(range(256)) * 4096; os.write(2, b'error'); n = 0\n"
        "while n < len(d): n += os.write(1, d[n:])"
    )
    done = run("run", "shoal/base", "python3", "-c", script)
    assert done.returncode == 0
    assert done.stdout == bytes(range(256)) * 4096
    assert done.stderr == b"error"
    assert living() == []


def test_run_passes_on_what_is_piped_in(cluster: Cluster) -> None:
    data = os.urandom(3_000_000)
    done = run("run", "shoal/base", "sh", "-c", "sha256sum; cat", stdin=data)
    import hashlib

    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_run_takes_the_place_of_an_images_own_command(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "images.py"
    file.write_text('import shoal\n\ntests = shoal.Image.base().cmd(["sh", "-c", "echo own; exit 3"])\n')
    given = run("run", f"{file}:tests", "sh", "-c", "sleep 0.5; echo given; exit 4")
    assert (given.returncode, given.stdout) == (4, b"given\n")
    own = run("run", f"{file}:tests")
    assert (own.returncode, own.stdout) == (3, b"own\n")


def test_run_hands_over_options(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "here")
    options = [
        "-e",
        "A=b c",
        "-e",
        "FROM_HERE",
        "-w",
        "/tmp",
        "-u",
        "nobody",
        "--cpu",
        "0.1:0.5",
        "--memory",
        "64:128m",
        "--network",
        "none",
    ]
    script = "pwd; id -un; echo $A; echo $FROM_HERE; ls /sys/class/net"
    done = run("run", *options, "shoal/base", "sh", "-c", script)
    assert done.stdout.decode().split("\n") == ["/tmp", "nobody", "b c", "here", "lo", ""], done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "shoal/base", "no-such-program"), 127, "no-such-program"),
        (("run", "shoal/base", "/etc/passwd"), 126, "/etc/passwd"),
        (("run", "--timeout", "1", "shoal/base", "sleep", "60"), 124, "timeout"),
        (("exec", "nosuchbox", "true"), 66, "nosuchbox"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    cluster: Cluster, arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert_told(run(*arguments), code, said)


def test_an_unknown_image_is_told(cluster: Cluster) -> None:
    with empty_registry() as registry:
        assert_told(run("run", f"{registry}/no-such-image:1", "true"), 66, "no-such-image")


def assert_told(done: subprocess.CompletedProcess[bytes], code: int, said: str) -> None:
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert said in text
    assert text.startswith("shoal: ")
    assert text.count("\n") == 1
    assert living() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_that_is_interrupted_ends_its_sandbox(cluster: Cluster, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "shoal/base", "sh", "-c", "echo ready; sleep 100"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"ready\n"
        command.send_signal(number)
        _, errors = command.communicate(timeout=30)
    assert command.returncode == 128 + number
    assert b"Traceback" not in errors
    assert living() == []


def test_a_reader_that_goes_away_is_no_error(box: shoal.Sandbox) -> None:
    line = f"{' '.join(COMMAND)} exec box yes | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["y", "141"]
    assert "Traceback" not in done.stderr
    assert not [process for process in box.processes() if process.running and "yes" in process.argv]


def test_detached_sandbox_is_listed_logged_and_removed(cluster: Cluster) -> None:
    script = "echo out; echo err >&2; sleep 1; echo more; sleep 100"
    made = run("run", "-d", "--name", "web", "--tag", "team=a", "shoal/base", "sh", "-c", script)
    identity = made.stdout.decode().strip()
    assert re.fullmatch(r"sb-[0-9a-z]+", identity)
    assert run("ls", "-q", "--tag", "team=a").stdout.decode().split() == [identity]
    assert run("ls", "-q", "--tag", "team=b").stdout == b""
    (row,) = json.loads(run("ls", "--json", "--tag", "team=a").stdout)
    assert (row["id"], row["state"], row["spec"]["name"]) == (identity, "running", "web")
    header, line, *_ = run("ls").stdout.decode().splitlines()
    assert header.split()[:4] == ["ID", "NAME", "IMAGE", "STATE"]
    assert line.split()[:4] == [identity, "web", "shoal/base", "running"], "the newest comes first"
    told = run("logs", "web")
    assert told.stdout.startswith(b"out\n")
    assert told.stderr == b"err\n"
    assert run("rm", "web").returncode == 0
    assert run("rm", identity).returncode == 0, "again is harmless"
    assert identity not in run("ls", "-q").stdout.decode()
    assert run("logs", identity).stdout.startswith(b"out\nmore\n")
    assert run("exec", identity, "true").returncode == 137


def test_logs_follow_to_the_end(cluster: Cluster) -> None:
    made = run("run", "-d", "shoal/base", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done")
    assert run("logs", "-f", made.stdout.decode().strip()).stdout == b"1\n2\n3\n"


def test_who_may_only_look_sees_the_logs(cluster: Cluster) -> None:
    url = cluster.file.api_url
    token = run("--url", url, "tokens", "create", "looks", "--scope", "read").stdout.decode().strip()
    script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo over; echo odd >&2"
    with shoal.Sandbox.create("sh", "-c", script) as sandbox:
        look = ("--url", url, "--token", token)
        assert run(*look, "exec", sandbox.id, "true").returncode == 77
        command = [*COMMAND, *look, "logs", "-f", sandbox.id]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == b"begun\n", "while it lives"
            assert run(*look, "logs", sandbox.id).stdout == b"begun\n"
            sandbox.run("touch /tmp/go")
            assert following.communicate(timeout=30) == (b"over\n", b"odd\n")
        assert following.returncode == 0
        assert run(*look, "logs", sandbox.id).stdout == b"begun\nover\n", "after its end"


def test_cp_as_cp_does(box: shoal.Sandbox, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "a").write_bytes(b"a")
    (tree / "deep" / "big").write_bytes(os.urandom(2_000_000))
    (tree / "deep" / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "deep" / "run").chmod(0o755)
    assert run("cp", str(tree / "a"), "box:/srv/renamed").returncode == 0
    assert run("cp", str(tree / "a"), "box:/srv").returncode == 0
    assert run("cp", str(tree), "box:/srv").returncode == 0
    assert run("cp", str(tree), "box:/srv/new").returncode == 0
    found = run("exec", "box", "sh", "-c", "cd /srv; find . -type f | sort; tree/deep/run").stdout.decode().split()
    expected = ["a", "new/a", "new/deep/big", "new/deep/run", "renamed", "tree/a", "tree/deep/big", "tree/deep/run"]
    assert found == [f"./{name}" for name in expected] + ["ran"]
    back = tmp_path / "back"
    assert run("cp", "box:/srv/tree", str(back)).returncode == 0
    assert run("cp", "box:/srv/tree", str(back)).returncode == 0
    for copy in (back, back / "tree"):
        assert (copy / "deep" / "big").read_bytes() == (tree / "deep" / "big").read_bytes()
        assert (copy / "deep" / "run").stat().st_mode & 0o777 == 0o755
    assert run("cp", "box:/srv/a", str(tmp_path)).returncode == 0
    assert (tmp_path / "a").read_bytes() == b"a"
    missing = run("cp", "box:/srv/none", str(tmp_path))
    assert (missing.returncode, b"/srv/none" in missing.stderr) == (66, True)


def test_status_tells_of_the_node(cluster: Cluster) -> None:
    told = json.loads(run("status", "--json").stdout)
    assert told["running"] is True
    assert told["cluster"] == cluster.file.cluster
    assert len(told["nodes"]) == 1
    assert cluster.file.ray_address in run("status").stdout.decode()
    exports = run("status", "--env").stdout.decode()
    assert f"export RAY_ADDRESS={cluster.file.ray_address}\n" in exports


# At a terminal


def test_shell_at_a_terminal(box: shoal.Sandbox) -> None:
    with terminal("shell", "box") as at:
        at.expect("# ")
        at.type("PS1='$ '; tty; stty size; echo $TERM-$((6*7))\n")
        at.expect("/dev/pts/")
        at.expect("30 100")
        at.expect("xterm-42")
        at.expect("$ ")  # what is typed while the shell takes its terminal back may be lost
        at.resize(50, 132)
        # It goes a way of its own, beside what is typed.
        at.type("until stty size | grep '^50 132$'; do sleep 0.05; done; echo done-$((1+1))\n")
        at.expect("done-2")
        at.expect("$ ")
        # A job of its own before it says so: between the commands of a list bash may lose an interrupt.
        at.type("sh -c 'echo begun-$((1+2)); exec sleep 100'\n")
        at.expect("begun-3")
        at.type("\x03")  # Ctrl-C is for the program inside
        at.expect("$ ")
        at.type("echo still-$((2+2))\n")
        at.expect("still-4")
        at.expect("$ ")
        at.type("exit 9\n")
        assert at.exit_code() == 9


def test_run_at_a_terminal_leaves_it_as_it_was(cluster: Cluster) -> None:
    with terminal("run", "-it", "shoal/base", "bash") as at:
        before = termios.tcgetattr(at.master)
        at.expect("# ")
        assert termios.tcgetattr(at.master) != before, "it is raw meanwhile"
        at.type("exit 4\n")
        at.expect("exit")
        # The slave's settings are gone with its last holder: look at them while the command still winds up.
        assert at.exit_code() == 4
    assert living() == []


def test_run_without_a_terminal_of_its_own_is_ended_by_ctrl_c(cluster: Cluster) -> None:
    with terminal("run", "shoal/base", "sh", "-c", "echo ready; sleep 100") as at:
        at.expect("ready")
        at.type("\x03")
        assert at.exit_code() == 130
    assert living() == []


def test_shell_without_a_terminal_says_so(box: shoal.Sandbox) -> None:
    done = run("shell", "box")
    assert done.returncode == 2
    assert b"terminal" in done.stderr
