"""Joining a cluster: the token, the files, and what a machine is told before anything is started."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shoal.cluster.local import join as local_join
from shoal.cluster.local import joined_file, processes
from shoal.cluster.local.join import JoinOptions
from shoal.cluster.local.joined_file import JoinedFile
from shoal.model import cluster_file, join_token, machine
from shoal.model.errors import FailedPrecondition, InvalidRequest, NodeNotFound, ShoalError, Unavailable
from shoal.model.join_token import JoinToken
from shoal.model.machine import MachineFile, own_settings
from shoal.model.settings import Settings
from tests.ports import free_port

TOKEN = JoinToken("c0ffee00", "ab" * 32, join_token.versions_here())
JOINED = JoinedFile(
    cluster="c0ffee00",
    name="beef0001",
    head="10.0.0.5:6379",
    address="10.0.0.6",
    auth_token_path="/state/auth_token",
    engine_address="unix:///run/docker.sock",
    run_dir="/run/shoal",
    temp_dir="/state/ray/s",
    joined_at=1.5,
    engine=cluster_file.ProcessRef(1, 2),
    ray=(cluster_file.ProcessRef(3, 4),),
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")


def test_a_token_is_read_as_it_was_written() -> None:
    assert join_token.parse(f" {TOKEN.text()}\n") == TOKEN
    assert len(TOKEN.text()) < 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shoaljoin_",
        "shoaljoin_e30",
        "shoaljoin_!!",
        "shoal_tk-abc",
        "x" * 5000,
        "shoaljoin_" + "A" * 5000,
        "shoaljoin_é",
    ],
)
def test_a_text_that_is_no_token_is_told_so(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        join_token.parse(text)
    assert raised.value.field == "token"


@pytest.mark.parametrize("cluster", ["../../etc", "", "a/b", "x" * 65])
def test_a_cluster_id_that_could_become_another_path_is_refused(cluster: str) -> None:
    with pytest.raises(InvalidRequest):
        join_token.parse(replace(TOKEN, cluster=cluster).text())


@pytest.mark.parametrize("name", ["shoal", "ray", "python"])
def test_other_versions_are_told_with_the_remedy(name: str) -> None:
    TOKEN.check_versions()
    with pytest.raises(FailedPrecondition) as raised:
        replace(TOKEN, versions={**TOKEN.versions, name: "9.9"}).check_versions()
    assert raised.value.state == "other_version"
    assert "9.9" in raised.value.message


def test_a_machine_has_its_own_settings_and_the_rest_of_the_cluster(tmp_path: Path) -> None:
    cluster = Settings.from_dict({"sandbox": {"cpu_limit": 7.0}, "network": {"allow": ["10.1.2.3"], "bridge": "head0"}})
    mine = Settings.from_dict({"state_dir": "/mine", "network": {"bridge": "mine0"}, "node": {"relay_port": 7000}})
    file = tmp_path / "machine.json"
    MachineFile("beef0001", own_settings(mine.to_dict())).write(file)
    read = machine.read({machine.VARIABLE: str(file)})
    assert read is not None
    merged = Settings.from_dict(read.over(cluster.to_dict_for_others()))
    assert (merged.state_dir, merged.network.bridge, merged.node.relay_port) == (Path("/mine"), "mine0", 7000)
    assert (merged.sandbox.cpu_limit, merged.network.allow) == (7.0, ("10.1.2.3",))
    assert set(read.over(cluster.to_dict())) == set(cluster.to_dict())
    assert machine.read({}) is None


def test_a_machine_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for content in ("", "[]", '{"name": "x"}'):
        (tmp_path / "m").write_text(content)
        with pytest.raises(FailedPrecondition):
            machine.read({machine.VARIABLE: str(tmp_path / "m")})


def test_what_was_joined_is_on_record_for_its_owner_only(tmp_path: Path) -> None:
    assert joined_file.read(tmp_path) is None
    joined_file.write(tmp_path, JOINED)
    assert joined_file.read(tmp_path) == JOINED
    assert joined_file.path_in(tmp_path).stat().st_mode & 0o777 == 0o600
    joined_file.path_in(tmp_path).write_text("{}")
    with pytest.raises(FailedPrecondition):
        joined_file.read(tmp_path)


@pytest.mark.parametrize(("text", "head"), [("10.0.0.5", "10.0.0.5:6379"), ("h.example:7000", "h.example:7000")])
def test_the_head_is_host_and_port(text: str, head: str) -> None:
    assert local_join.normal_head(text) == head


@pytest.mark.parametrize("text", ["", ":1", "h:0", "h:70000", "h:x", "http://h:8000", "127.0.0.1:6379", "localhost"])
def test_what_is_no_head_is_told(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        local_join.normal_head(text)
    assert raised.value.field == "head"


def failure(settings: Settings, options: JoinOptions) -> ShoalError:
    with pytest.raises(ShoalError) as raised:
        local_join.join(settings, options)
    assert not joined_file.path_in(settings.state_dir).exists(), "nothing was begun"
    return raised.value


def test_joining_without_root_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = failure(settings, JoinOptions(head="10.0.0.5", token=TOKEN))
    assert isinstance(error, FailedPrecondition)
    assert error.state == "not_root"


def test_a_head_that_nothing_answers_at_is_told(settings: Settings) -> None:
    error = failure(settings, JoinOptions(head=f"127.0.0.2:{free_port()}", token=TOKEN))
    assert isinstance(error, Unavailable)


def test_an_address_of_another_machine_is_refused(settings: Settings) -> None:
    error = failure(settings, JoinOptions(head="127.0.0.2:1", token=TOKEN, address="203.0.113.77"))
    assert (type(error), error.field) == (InvalidRequest, "address")


def test_a_node_beside_its_head_is_at_the_same_address() -> None:
    assert local_join._own_address("127.0.0.2:6379") == "127.0.0.2"


def test_without_a_head_or_a_token_it_asks_for_them(settings: Settings) -> None:
    assert failure(settings, JoinOptions()).field == "head"
    assert failure(settings, JoinOptions(head="10.0.0.5")).field == "token"


def test_a_machine_with_a_cluster_of_its_own_does_not_join(settings: Settings) -> None:
    cluster_file.write_private(cluster_file.path_in(settings.state_dir), b"{}")
    error = failure(settings, JoinOptions(head="10.0.0.5", token=TOKEN))
    assert isinstance(error, FailedPrecondition)
    assert error.state == "head"


def test_a_machine_that_has_joined_joins_no_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.state_dir.mkdir()
    joined_file.write(settings.state_dir, JOINED)
    monkeypatch.setattr(local_join, "well", lambda joined: True)
    with pytest.raises(FailedPrecondition) as raised:
        local_join.join(settings, JoinOptions(head="10.0.0.99", token=TOKEN))
    assert raised.value.state == "joined"


def test_a_node_of_a_cluster_that_was_started_anew_is_started_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = settings.state_dir / "auth_token"
    cluster_file.write_private(token, TOKEN.ray_token.encode())
    joined = replace(JOINED, auth_token_path=str(token))
    joined_file.write(settings.state_dir, joined)
    monkeypatch.setattr(local_join, "well", lambda joined: True)
    monkeypatch.setattr(local_join, "_take_down", lambda *_, **__: [])
    monkeypatch.setattr(local_join, "_start", lambda *_, **__: joined)
    for ray_token, started in ((TOKEN.ray_token, False), ("cd" * 32, True)):
        again = JoinOptions(head=JOINED.head, token=replace(TOKEN, ray_token=ray_token), admitted=False)
        assert local_join.join(settings, again).started == started


def test_a_node_that_runs_stays_without_its_head_unless_it_is_forced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.state_dir.mkdir()
    here = processes.ref(os.getpid())
    assert here is not None
    joined_file.write(settings.state_dir, replace(JOINED, head=f"127.0.0.2:{free_port()}", ray=(here,)))
    monkeypatch.setattr(local_join, "_take_down", lambda *_, **__: [])
    with pytest.raises(Unavailable):
        local_join.leave(settings)
    assert local_join.leave(settings, force=True)


def test_leaving_without_having_joined_does_nothing(settings: Settings) -> None:
    assert not local_join.leave(settings)


@pytest.mark.parametrize("force", [False, True])
def test_a_node_that_was_drained_before_leaves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    settings.state_dir.mkdir()
    here = processes.ref(os.getpid())
    assert here is not None
    joined_file.write(settings.state_dir, replace(JOINED, ray=(here,)))

    def gone(*_: object, **__: object) -> int:
        raise NodeNotFound("the cluster has no such node")

    monkeypatch.setattr(local_join.local_ray, "answers", lambda *_: True)
    monkeypatch.setattr(local_join.local_actors, "let_go", gone)
    monkeypatch.setattr(local_join, "_take_down", lambda *_, **__: [])
    assert local_join.leave(settings, force=force)


def test_what_still_runs_keeps_it_unless_it_is_forced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.state_dir.mkdir()
    here = processes.ref(os.getpid())
    assert here is not None
    joined_file.write(settings.state_dir, replace(JOINED, ray=(here,)))
    monkeypatch.setattr(local_join.local_ray, "answers", lambda *_: True)
    monkeypatch.setattr(local_join.local_actors, "let_go", lambda *_, **__: 2)
    monkeypatch.setattr(local_join, "_take_down", lambda *_, **__: [])
    with pytest.raises(FailedPrecondition) as raised:
        local_join.leave(settings)
    assert raised.value.state == "in_use"
    assert local_join.leave(settings, force=True)


def test_a_node_that_is_repaired_is_as_it_was(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    token = settings.state_dir / "auth_token"
    cluster_file.write_private(token, TOKEN.ray_token.encode())
    options = {"region": "eu", "zone": None, "cpus": 3, "memory": None, "gpus": 0, "labels": {"a": "b"}, "environ": {}}
    joined_file.write(settings.state_dir, replace(JOINED, auth_token_path=str(token), options=options))
    seen: list[JoinOptions] = []

    def start(_: Settings, options: JoinOptions, __: object, *, forget: bool) -> JoinedFile:
        assert not forget
        seen.append(options)
        return JOINED

    monkeypatch.setattr(local_join, "well", lambda joined: False)
    monkeypatch.setattr(local_join, "_take_down", lambda *_, **__: [])
    monkeypatch.setattr(local_join, "_start", start)
    local_join.join(settings)
    local_join.join(settings, JoinOptions(region="us"))
    first, second = seen
    assert (first.head, first.address, first.region, first.gpus) == (JOINED.head, JOINED.address, "eu", 0)
    assert (dict(first.labels), second.region, second.cpus) == ({"a": "b"}, "us", 3)
    assert first.token is not None
    assert first.token.ray_token == TOKEN.ray_token


def test_a_repair_that_fails_can_be_tried_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a reboot, when the head is not there yet."""
    token = settings.state_dir / "auth_token"
    cluster_file.write_private(token, TOKEN.ray_token.encode())
    joined = replace(
        JOINED,
        head=f"127.0.0.2:{free_port()}",
        address="127.0.0.1",
        auth_token_path=str(token),
        engine_address="unix:///nowhere.sock",
        run_dir=str(settings.run_dir),
        temp_dir=str(settings.state_dir / "ray" / "s"),
        settings=settings.to_dict(),
        engine=None,
    )
    joined_file.write(settings.state_dir, joined)
    monkeypatch.setattr(local_join, "_sweep", lambda *_: [])
    for _ in range(2):
        with pytest.raises(Unavailable):
            local_join.join(settings)
        assert joined_file.read(settings.state_dir) == joined


@pytest.mark.parametrize(
    "fails",
    [
        FailedPrecondition("no engine: install runc", state="no_engine"),
        FailedPrecondition("Ray does not start: the cluster's Ray refused the join token"),
        KeyboardInterrupt(),
    ],
)
@pytest.mark.parametrize("step", ["engine", "ray", "admit"])
def test_a_join_that_fails_leaves_the_machine_as_it_was(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fails: BaseException, step: str
) -> None:
    def fail(*_: object) -> None:
        raise fails

    stopped: list[str] = []
    engine = SimpleNamespace(
        address="unix:///e.sock", process=cluster_file.ProcessRef(1, 2), kind="oci",
        ensure_image=lambda *_: None, stop=lambda keep: stopped.append("engine"),
    )  # fmt: skip
    temp_dir = settings.state_dir / "ray"  # this directory is too long for Ray's sockets
    monkeypatch.setattr(local_join.local_ray, "choose_temp_dir", lambda *_: temp_dir)
    monkeypatch.setattr(local_join.packages, "ensure", lambda *_: None)
    monkeypatch.setattr(local_join.engines, "provide", fail if step == "engine" else lambda *_: engine)
    monkeypatch.setattr(local_join.engines, "reach", lambda address, *_, own: engine if own else None)
    monkeypatch.setattr(local_join.local_ray, "answers", lambda *_: True)
    monkeypatch.setattr(local_join.local_ray, "check_token", lambda *_: None)
    monkeypatch.setattr(local_join.local_ray, "join", fail if step == "ray" else lambda *_: None)
    monkeypatch.setattr(local_join.local_ray, "daemons", lambda *_: [])
    monkeypatch.setattr(local_join.local_actors, "admit", fail)
    monkeypatch.setattr(local_join, "_sweep", lambda *_: [])
    with pytest.raises(type(fails)):
        local_join.join(settings, JoinOptions(head="127.0.0.2:1", address="127.0.0.1", token=TOKEN))
    assert stopped == ([] if step == "engine" else ["engine"])
    left = {path.name for path in settings.state_dir.iterdir()}
    assert left <= {"cluster-id", "lock"}, left
    assert not settings.run_dir.exists()
