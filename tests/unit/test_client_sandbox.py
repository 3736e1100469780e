"""Sandboxes, as a user holds them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import shoal
from shoal.model.spec import SandboxSpec
from tests.unit.client_lab import ClientLab


@pytest.fixture
def lab() -> ClientLab:
    return ClientLab()


def spec_of(lab: ClientLab, **arguments: Any) -> SandboxSpec:
    shoal.Sandbox.create(client=lab.client, **arguments)
    spec = lab.fake.named("create")[-1]
    assert isinstance(spec, SandboxSpec)
    return spec


# Creating


def test_what_is_not_given_is_the_clusters_default(lab: ClientLab) -> None:
    spec = spec_of(lab)
    resources = spec.resources
    assert (spec.image, spec.timeout, spec.network, spec.environment) == ("shoal/base", 300.0, "default", "main")
    assert (resources.cpu_request, resources.cpu_limit) == (0.125, 1.0)
    assert (resources.memory_request, resources.memory_limit, resources.disk, resources.pids) == (128, 1024, 8192, 512)
    spec_of(lab)
    assert len(lab.fake.named("defaults")) == 1  # asked for once


@pytest.mark.parametrize(
    ("cpu", "expected"), [(0.5, (0.5, 1.0)), (2, (2, 2)), ((0.5, 4), (0.5, 4)), ([1, 2], (1, 2))], ids=str
)
def test_one_number_is_the_request_and_the_limit_at_least_the_default(lab: ClientLab, cpu: Any, expected: Any) -> None:
    resources = spec_of(lab, cpu=cpu).resources
    assert (resources.cpu_request, resources.cpu_limit) == expected


def test_a_command_by_name_is_refused_and_not_forgotten(lab: ClientLab) -> None:
    options: dict[str, Any] = {"command": ["sleep", "9"]}
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.Sandbox.create(**options)
    assert caught.value.field == "command"


def test_all_arguments_arrive(lab: ClientLab) -> None:
    sandbox = shoal.Sandbox.create(
        *("sleep", "9"),
        image="i",
        name="n",
        tags={"a": "b"},
        env={"E": "1"},
        workdir="/w",
        user="u",
        memory=(64, 128),
        disk=10,
        gpu=1,
        pids=9,
        timeout=5,
        idle_timeout=2,
        pty=True,
        network="none",
        region="r",
        runtime="runsc",
        environment="dev",
        idempotency_key="k",
        client=lab.client,
    )
    spec = lab.fake.named("create")[0]
    assert spec.command == ("sleep", "9")
    assert (spec.image, spec.name, spec.tags, spec.env, spec.workdir, spec.user) == (
        "i",
        "n",
        {"a": "b"},
        {"E": "1"},
        "/w",
        "u",
    )
    assert (spec.resources.memory_request, spec.resources.memory_limit) == (64, 128)
    assert (spec.resources.disk, spec.resources.gpu, spec.resources.pids) == (10, 1, 9)
    assert (spec.timeout, spec.idle_timeout, spec.pty, spec.network, spec.regions) == (5, 2, True, "none", ("r",))
    assert (spec.runtime, spec.environment, spec.idempotency_key) == ("runsc", "dev", "k")
    assert (sandbox.name, sandbox.tags) == ("n", {"a": "b"})


def test_every_create_carries_a_key_of_its_own(lab: ClientLab) -> None:
    keys = [spec_of(lab).idempotency_key for _ in range(3)]
    assert None not in keys
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"cpu": "much"}, "cpu"),
        ({"cpu": True}, "cpu"),
        ({"cpu": (1, 2, 3)}, "cpu"),
        ({"cpu": 0}, "cpu"),
        ({"cpu": -1}, "cpu"),
        ({"cpu": (2, 1)}, "cpu"),
        ({"cpu": float("nan")}, "cpu"),
        ({"memory": 1.5}, "memory"),
        ({"memory": (512, 128)}, "memory"),
        ({"disk": 0}, "disk"),
        ({"gpu": -1}, "gpu"),
        ({"pids": 0}, "pids"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"idle_timeout": -3}, "idle_timeout"),
        ({"workdir": "relative"}, "workdir"),
        ({"env": ["A=1"]}, "env"),
        ({"env": {"A=B": "1"}}, "env"),
        ({"tags": "a"}, "tags"),
        ({"tags": {"a": 1}}, "tags"),
        ({"name": "not a name"}, "name"),
        ({"network": "some"}, "network"),
        ({"image": ""}, "image"),
    ],
    ids=str,
)
def test_bad_arguments_are_told_by_field_and_nothing_is_made(
    lab: ClientLab, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.Sandbox.create(client=lab.client, **arguments)
    assert caught.value.field == field
    assert list(shoal.Sandbox.list(client=lab.client)) == []


# Finding


def test_found_by_id_by_name_and_by_tags(lab: ClientLab) -> None:
    first = lab.sandbox(name="one")
    second = shoal.Sandbox.create(tags={"job": "x", "n": "2"}, client=lab.client)
    assert shoal.Sandbox.from_id(first.id, client=lab.client).name == "one"
    assert shoal.Sandbox.from_name("one", client=lab.client).id == first.id
    assert [s.id for s in shoal.Sandbox.list(client=lab.client)] == [second.id, first.id]
    assert [s.id for s in shoal.Sandbox.list(tags={"job": "x"}, client=lab.client)] == [second.id]
    second.set_tags({"job": "y"})
    assert second.tags == {"job": "y"}
    assert list(shoal.Sandbox.list(tags={"job": "x"}, client=lab.client)) == []


def test_what_never_was_is_not_found_and_what_is_no_id_is_refused(lab: ClientLab) -> None:
    with pytest.raises(shoal.SandboxNotFound):
        shoal.Sandbox.from_id("sb-0", client=lab.client)
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.Sandbox.from_id("0", client=lab.client)
    assert caught.value.field == "sandbox_id"
    with pytest.raises(shoal.SandboxNotFound):
        shoal.Sandbox.from_name("nobody", client=lab.client)


def test_a_name_that_is_taken_is_refused_and_free_again_after_the_end(lab: ClientLab) -> None:
    with lab.sandbox(name="one"), pytest.raises(shoal.AlreadyExists) as caught:
        lab.sandbox(name="one")
    assert caught.value.field == "name"
    with lab.sandbox(name="one") as again:
        assert shoal.Sandbox.from_name("one", client=lab.client).id == again.id


# Stopping


def test_a_persistent_sandbox_is_stopped_and_started_again(lab: ClientLab) -> None:
    sandbox = shoal.Sandbox.create(persistent=True, name="dev", client=lab.client)
    assert sandbox.info().spec.timeout is None, "it has no lifetime unless one is given"
    sandbox.files.write_text("/a", "kept")
    with sandbox:
        sandbox.stop()
        for use in (lambda: sandbox.run("true"), lambda: sandbox.files.read_text("/a")):
            with pytest.raises(shoal.FailedPrecondition) as caught:
                use()
            assert caught.value.state == "stopped"
        assert (sandbox.info().reason, sandbox.poll()) == (shoal.Reason.STOPPED, None)
        sandbox.start()
        assert sandbox.files.read_text("/a") == "kept"
    assert sandbox.info().state == shoal.State.STOPPED, "its block stops it"
    assert [each.id for each in shoal.Sandbox.list(client=lab.client)] == [sandbox.id]
    sandbox.terminate()
    assert sandbox.poll() == 137


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"restart": "always"}, "restart"),
        ({"persistent": True, "restart": "sometimes"}, "restart"),
        ({"persistent": True, "owner_lease": 60}, "owner_lease"),
    ],
)
def test_options_of_persistence_that_make_no_sense(lab: ClientLab, options: dict[str, Any], field: str) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.Sandbox.create(client=lab.client, **options)
    assert caught.value.field == field


# Ending


def test_a_context_manager_terminates(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        assert sandbox.poll() is None
        assert not sandbox.info().ended
    info = sandbox.info()
    assert (info.state, info.reason) == (shoal.State.TERMINATED, shoal.Reason.TERMINATED)
    with pytest.raises(shoal.SandboxEnded) as caught:
        sandbox.run("true")
    assert caught.value.reason == "terminated"
    sandbox.terminate()  # again is harmless
    assert len(lab.fake.named("terminate")) == 1


def test_awaited_too(lab: ClientLab) -> None:
    async def use() -> shoal.SandboxInfo:
        async with await shoal.Sandbox.create.aio(client=lab.client) as sandbox:
            assert (await sandbox.run.aio("echo hi")).stdout == "hi\n"
        return await sandbox.info.aio()

    assert asyncio.run(use()).ended


def test_its_own_command_has_output_and_an_end(lab: ClientLab) -> None:
    sandbox = lab.sandbox("echo", "hello", "there")
    assert sandbox.wait(timeout=5) == 0
    assert sandbox.returncode == 0
    assert sandbox.info().reason is shoal.Reason.COMPLETED
    assert list(sandbox.stdout) == ["hello there\n"]  # it has ended: out of what was kept
    assert sandbox.stderr.read() == ""
    assert sandbox.poll() == 0


def test_its_own_commands_output_goes_on_across_the_end(lab: ClientLab) -> None:
    sandbox = lab.sandbox("cat")
    sandbox.stdin.write("one\ntw")
    assert sandbox.stdout.readline() == "one\n"
    sandbox.stdin.write("o\n")
    sandbox.stdin.close()
    assert sandbox.wait(timeout=5) == 0
    assert sandbox.stdout.read() == "two\n"


def test_waiting_has_a_limit(lab: ClientLab) -> None:
    sandbox = lab.sandbox("sleep", "60")
    began = time.monotonic()
    with pytest.raises(shoal.DeadlineExceeded):
        sandbox.wait(timeout=0.05)
    assert time.monotonic() - began < 30  # a machine may stand still for seconds
    assert sandbox.returncode is None


def test_a_sandbox_without_a_command_has_a_number_once_it_has_ended(lab: ClientLab) -> None:
    sandbox = lab.sandbox()
    assert sandbox.poll() is None
    sandbox.terminate()
    assert (sandbox.poll(), sandbox.returncode, sandbox.wait()) == (137, 137, 137)
    with pytest.raises(shoal.SandboxEnded) as caught:
        sandbox.run("true")
    assert (caught.value.reason, caught.value.exit_code) == ("terminated", 137)


def test_without_a_command_of_its_own_there_is_no_output_of_it(lab: ClientLab) -> None:
    with pytest.raises(shoal.FailedPrecondition):
        _ = lab.sandbox().stdout


# The default client


def test_the_client_that_is_used_is_the_last_that_was_connected(
    lab: ClientLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.client import cluster as client

    monkeypatch.setattr(client._default, "client", lab.client)
    sandbox = shoal.Sandbox.create()
    assert shoal.Sandbox.from_id(sandbox.id).id == sandbox.id
    with lab.client as same:
        assert same.nodes()[0].sandboxes == 1
    assert client._default.client is None
    assert lab.fake.named("close") == [None]


def test_without_a_cluster_the_next_step_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.client import cluster as client

    monkeypatch.setattr(client._default, "client", None)
    monkeypatch.setenv("SHOAL_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("SHOAL_CONFIG", str(tmp_path / "config.toml"))  # not that of whoever runs this
    for name in ("SHOAL_URL", "SHOAL_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(shoal.FailedPrecondition, match="run `shoal up`"):
        shoal.Sandbox.create("true")
