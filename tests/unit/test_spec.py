"""A field of a sandbox is written once: whatever lists the fields agrees with the spec, and earlier versions' specs
stay what they were.
"""

from __future__ import annotations

import inspect
import json
import pydoc
from dataclasses import fields, replace
from typing import Any

import pytest

import shoal
from shoal.actors.controller.record import SandboxRecord, from_row, to_row
from shoal.client.create_options import CreateOptions
from shoal.cluster.api.schema.control import Sandbox, SandboxCreate
from shoal.model.errors import InvalidRequest
from shoal.model.info import SandboxInfo
from shoal.model.options import NAMES, build_spec, docs, options_of, spec_of
from shoal.model.sandbox_json import info_from_json, info_to_json, spec_to_json
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.spec_model import check_spec
from shoal.model.states import State

FULL = SandboxSpec(
    "python:3.12",
    Resources(0.5, 2.0, 256, 1024, 2048, 64, 1),
    command=("sh", "-c", "true"),
    name="web",
    tags={"run": "7"},
    env={"A": "b"},
    workdir="/work",
    user="1000:1000",
    timeout=60,
    idle_timeout=5.5,
    pty=True,
    network="none",
    regions=("eu",),
    runtime="runsc",
    environment="dev",
    idempotency_key="key",
)
PLAIN = SandboxSpec("shoal/base", Resources(0.125, 1.0, 128, 1024, 8192, 512))


def test_every_list_of_options_is_that_of_the_spec() -> None:
    assert CreateOptions.__annotations__.keys() == NAMES
    assert SandboxCreate.model_fields.keys() == NAMES - {"idempotency_key"}
    assert NAMES - Sandbox.model_fields.keys() == {"env", "idempotency_key"}
    assert docs().keys() == NAMES


def test_help_tells_each_option() -> None:
    told = pydoc.render_doc(shoal.Sandbox.create)
    signature = inspect.signature(shoal.Sandbox.create)
    for name in NAMES - {"command"}:
        assert name in signature.parameters
        assert f"{name}: {docs()[name]}" in told


@pytest.mark.parametrize("spec", [replace(FULL, hostname="castle", owner_lease=60.0), PLAIN], ids=["full", "plain"])
def test_a_spec_survives_every_form(spec: SandboxSpec) -> None:
    check_spec(spec, None)
    assert spec_of(options_of(spec)) == spec
    body = SandboxCreate.model_validate(json.loads(json.dumps(spec_to_json(spec))))
    assert body.spec(SandboxDefaults(), spec.environment, spec.idempotency_key) == spec
    told = replace(spec, env={}, idempotency_key=None)
    info = SandboxInfo("sb-1", State.RUNNING, told, created_at=1.0, tags=spec.tags)
    assert info_from_json(json.loads(json.dumps(info_to_json(info)))) == info
    record = SandboxRecord("sb-1", spec, 1.0, {})
    assert from_row(json.loads(json.dumps(to_row(record)))).spec == spec


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (FULL, "4fc0b39c1bbd9331c90cbae7755ec97a827d45170bdda1babb88d8bbfffced40"),
        (PLAIN, "4a2a4dcba96f143d4f44888b81d560c3b42f7aef86587c12655f7d700b997614"),
    ],
    ids=["full", "plain"],
)
def test_the_digest_of_what_was_asked_for_stays(spec: SandboxSpec, digest: str) -> None:
    """Earlier versions have stored it: with another one a repeated create would be told that its key is taken."""
    record = SandboxRecord("sb-1", spec, 1.0, {})
    record.shorten()
    assert record.digest == digest


def test_a_row_of_an_earlier_version_lacks_what_came_later() -> None:
    row: dict[str, Any] = json.loads(json.dumps(to_row(SandboxRecord("sb-1", PLAIN, 1.0, {}))))
    optional = [one.name for one in fields(SandboxSpec) if one.name not in ("image", "resources", "command")]
    for name in optional:
        row["spec"].pop(name)
    assert from_row(row).spec == PLAIN


def test_what_is_not_given_is_the_clusters_default() -> None:
    defaults = SandboxDefaults(image="i", timeout=7)
    spec = build_spec({"timeout": None, "gpu": None, "cpu": 3}, defaults)
    assert (spec.image, spec.timeout, spec.resources.gpu) == ("i", 7, 0)
    assert (spec.resources.cpu_request, spec.resources.cpu_limit) == (3, 3)


def test_what_is_no_option_is_told() -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_spec({"imag": "x"}, SandboxDefaults())
    assert caught.value.field == "imag"
