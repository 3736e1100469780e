"""The `shoal` command as a shell calls it, where there is no cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

from shoal.cli.main import app
from shoal.model.errors import ShoalError
from tests.command import Done, called

COMMANDS = (
    *(
        "up",
        "down",
        "status",
        "dashboard",
        "doctor",
        "run",
        "exec",
        "shell",
        "ls",
        "logs",
        "cp",
        "suspend",
        "pause",
        "resume",
    ),
    *(
        "stop",
        "start",
        "rm",
        "tunnel",
        "tunnels",
        "forward",
        "login",
        "logout",
        "audit",
        "events",
        "join",
        "leave",
        "top",
        "usage",
        "profile",
    ),
)
GROUPS = {
    "tokens": ("create", "ls", "rm"),
    "environments": ("create", "ls", "quota", "rm"),
    "image": ("build", "ls", "show", "snapshot", "tag", "rm", "gc"),
    "pool": ("create", "ls", "resize", "rm"),
    "rollout": ("ls", "show"),
    "secret": ("create", "ls", "rm", "rotate"),
    "volume": ("create", "ls", "put", "get", "rm", "restore", "usage", "limit", "commit"),
    "cluster": ("up", "status", "down"),
    "node": ("token", "ls", "cordon", "uncordon", "drain"),
}


COMMAND = get_command(app)


def environment(state: Path, **environ: str) -> dict[str, str]:
    """That of a user who has no cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHOAL_", "RAY_", "DOCKER_"))}
    places = {"SHOAL_STATE_DIR": state, "SHOAL_RUN_DIR": state / "run", "SHOAL_CONFIG": state / "config.toml"}
    return {**kept, **{name: str(place) for name, place in places.items()}, **environ}


def shoal(*arguments: str, state: Path, **environ: str) -> Done:
    return called(*arguments, environ=environment(state, **environ))


def started(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, as a shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", "shoal.cli.entry", *arguments],
        env=environment(state),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def help_of(*arguments: str, **environ: str) -> str:
    shown = CliRunner().invoke(COMMAND, [*arguments, "--help"], prog_name="shoal", env=environ)
    assert shown.exit_code == 0, arguments
    return shown.output


def test_help_teaches_by_examples() -> None:
    for command in [*COMMANDS, *(f"{group} {command}" for group, commands in GROUPS.items() for command in commands)]:
        shown = help_of(*command.split())
        assert "Examples:" in shown, command
        assert f"shoal {command}" in shown


def test_help_lists_every_command(tmp_path: Path) -> None:
    listed = started("--help", state=tmp_path).stdout.partition("\nCommands:\n")[2].partition("\n\n")[0]
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted((*COMMANDS, *GROUPS))


def test_no_line_of_the_list_is_cut_off() -> None:
    for arguments in ((), *((group,) for group in GROUPS)):
        listed = help_of(*arguments, COLUMNS="80").partition("\nCommands:\n")[2]
        assert listed
        assert "..." not in listed


def test_the_readme_lists_every_command() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    (row,) = [line for line in readme.read_text().splitlines() if line.startswith("| Command line |")]
    assert sorted(row.split("`")[1].removeprefix("shoal ").split(", ")) == sorted((*COMMANDS, *GROUPS))


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv = ['shoal', '--help']\nfrom shoal.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', [m for m in ('ray', 'docker', 'pydantic', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_an_interrupt_before_all_is_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "shoal.cli.entry", "ls"]
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr is not None
        while "typer" not in starting.stderr.readline():
            assert starting.poll() is None
        starting.send_signal(signal.SIGINT)
        assert "Traceback" not in starting.stderr.read()
    assert starting.returncode == 130


def test_without_a_cluster_the_next_step_is_named_in_one_line(tmp_path: Path) -> None:
    failed = started("ls", state=tmp_path)
    assert failed.returncode == 78
    assert failed.stdout == ""
    assert failed.stderr.startswith("shoal: ")
    assert failed.stderr.count("\n") == 1
    assert "shoal up" in failed.stderr


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    with pytest.raises(ShoalError):
        shoal("ls", state=tmp_path, SHOAL_DEBUG="1")


def test_status_without_a_cluster(tmp_path: Path) -> None:
    assert shoal("status", state=tmp_path).returncode == 69
    told = shoal("status", "--json", state=tmp_path)
    assert told.returncode == 69
    assert json.loads(told.stdout)["running"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "--memory", "much", "shoal/base", "true"),
        ("run", "-it", "shoal/base", "bash"),
        ("cp", "a", "b"),
        ("shell", "web"),
        ("dance",),
        ("--url", "localhost:8000", "ls"),
        ("login", "http://127.0.0.1:1"),
        ("tokens", "rm", "shoal_tk-1_x"),
    ],
)
def test_a_call_that_is_wrong_exits_with_2_and_says_why(arguments: tuple[str, ...], tmp_path: Path) -> None:
    failed = shoal(*arguments, state=tmp_path)
    assert failed.returncode == 2, failed
    assert failed.stderr
    assert "Traceback" not in failed.stderr


def test_what_is_done_to_this_machine_takes_no_cluster_elsewhere(tmp_path: Path) -> None:
    failed = shoal("--url", "https://prod", "down", state=tmp_path)
    assert failed.returncode == 2
    assert "`shoal down` is about the cluster on this machine" in failed.stderr


def test_a_setting_that_is_wrong_is_named(tmp_path: Path) -> None:
    failed = shoal("doctor", state=tmp_path, SHOAL_NODE__IDLE_SLOTS="-3")
    assert failed.returncode == 2
    assert "SHOAL_NODE__IDLE_SLOTS" in failed.stderr


def test_an_unknown_setting_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[node]\nidle_slotz = 3\n")
    failed = shoal("up", state=tmp_path)
    assert failed.returncode == 2
    assert "idle_slotz" in failed.stderr


def test_doctor_names_what_is_missing_and_what_mends_it(tmp_path: Path) -> None:
    examined = shoal("doctor", "--json", state=tmp_path)
    checks = {check["name"]: check for check in json.loads(examined.stdout)}
    assert examined.returncode == 1
    assert checks["cluster"]["ok"] is False
    assert all(check["remedy"] for check in checks.values() if not check["ok"])


def test_doctor_without_programs_names_their_packages(tmp_path: Path) -> None:
    """On a machine where nothing is on the PATH and the system's directories hold nothing, as far as it can see."""
    from shoal.cluster.local import packages

    assert packages.missing({"no-such-program": "its-package", "sh": "dash"}) == ["its-package"]
    assert packages.install_command(["its-package"]) == "apt-get update && apt-get install -y its-package"


def test_down_without_a_cluster_is_no_error(tmp_path: Path) -> None:
    done = shoal("down", state=tmp_path, SHOAL_NETWORK__BRIDGE="shoalt9")
    assert done.returncode == 0, done.stderr
    assert "no cluster" in done.stderr


def test_version(tmp_path: Path) -> None:
    shown = shoal("--version", state=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.startswith("shoal ")
