"""Which engine a machine uses, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines.catalogue import engine_named
from shoal.actors.engines.oci.records import Record, Records
from shoal.actors.node.records import ContainerRecord, Stage
from shoal.cluster.local import engines
from shoal.cluster.local.engines import choice
from shoal.cluster.local.engines.oci import OciKind
from shoal.model.errors import InvalidRequest
from shoal.model.settings import Settings
from shoal.model.spec import ContainerShape


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings.from_dict({"state_dir": str(tmp_path), "run_dir": str(tmp_path / "run"), **changes})


@pytest.mark.parametrize(("problem", "chosen"), [(None, "oci"), ("it needs root", "docker")])
def test_auto_is_the_direct_engine_where_that_works_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str | None, chosen: str
) -> None:
    monkeypatch.setattr(OciKind, "problem", lambda *_: problem)
    found = engines.choose(settings(tmp_path))
    assert found.kind.name == chosen
    assert (problem or "self-check") in found.why
    assert found.is_fallback is (problem is not None)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"engine": "docker"}, "docker"),
        ({"engine": "oci"}, "oci"),
        ({"engine_address": "unix:///run/docker.sock"}, "docker"),
        ({"engine_address": "oci:///var/lib/shoal/oci"}, "oci"),
    ],
)
def test_what_is_named_is_used_and_never_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], chosen: str
) -> None:
    monkeypatch.setattr(OciKind, "problem", lambda *_: pytest.fail("nobody asked"))
    assert engines.choose(settings(tmp_path, **asked)).kind.name == chosen


def test_persistent_sandboxes_stay_with_the_engine_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OciKind, "problem", lambda *_: None)
    shape = ContainerShape("x", 1.0, 64, 64, 64, "default", 0, "runc", "sandbox", persistent=True)
    record = ContainerRecord("c-one", shape, 1.0, "sb-1", stage=Stage.STOPPED)
    files = tmp_path / "node" / "containers"
    files.mkdir(parents=True)
    (files / "c-one.json").write_text(json.dumps(asdict(record)))
    assert engines.choose(settings(tmp_path)).kind.name == "docker"
    records = Records(tmp_path / "oci" / "containers")
    records.open()
    records.put(Record("c-one", "sha256:abc", "runc", 1.0, keep=True))
    assert engines.choose(settings(tmp_path)).kind.name == "oci"


def test_no_engine_of_the_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engines.choose(settings(tmp_path, engine="podman"))
    assert caught.value.field == "engine"
    with pytest.raises(InvalidRequest) as caught:
        engines.at("nowhere", settings(tmp_path))
    assert caught.value.field == "engine_address"


def test_an_address_leads_to_its_engine(tmp_path: Path) -> None:
    own = settings(tmp_path)
    assert engines.at("unix:///nowhere", own).kind == "docker"
    direct = engines.at(f"oci://{tmp_path}/oci", own)
    assert (direct.kind, direct.answers(), direct.containers({}), direct.has_image("x")) == ("oci", False, [], False)
    assert {kind.name for kind in choice.KINDS} == {"oci", "docker"}


def test_a_ray_cluster_of_another_kind_has_docker(tmp_path: Path) -> None:
    assert engine_named("auto", settings(tmp_path)).name == "docker"
    assert engine_named("auto", settings(tmp_path, engine_address=f"oci://{tmp_path}/oci")).name == "oci"
