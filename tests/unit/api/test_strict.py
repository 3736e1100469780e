"""Wrong data costs no more than right: of all that is wrong only the first thing is looked for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shoal.cluster.api.schema.administration import EnvironmentCreate, QuotaModel, TokenCreate
from shoal.cluster.api.schema.control import Batch, BatchItem, SandboxCreate, Tags
from shoal.cluster.api.schema.data import Exec, MakeDirectory, ProcessStart, Said
from tests.api import Api

MANY = {str(number): 0 for number in range(200_000)}
SENT: list[type[BaseModel]] = [
    Batch, BatchItem, EnvironmentCreate, QuotaModel, SandboxCreate, Tags, TokenCreate,
    Exec, MakeDirectory, ProcessStart,
]  # fmt: skip


def wrong(model: type[BaseModel], data: object) -> dict[str, Any]:
    """The one thing that is said to be wrong."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    assert caught.value.error_count() == 1
    return dict(caught.value.errors()[0])


@pytest.mark.parametrize("model", SENT)
def test_the_first_unknown_member_is_enough(model: type[BaseModel]) -> None:
    found = wrong(model, MANY)
    assert (found["type"], found["loc"]) == ("extra_forbidden", ("0",))


@pytest.mark.parametrize(
    ("model", "data", "kind", "place"),
    [
        (BatchItem, {"tags": MANY}, "too_long", ("tags",)),
        (Batch, {"sandboxes": [0] * 200_000}, "too_long", ("sandboxes",)),
        (SandboxCreate, {"tags": MANY}, "too_long", ("tags",)),
        (SandboxCreate, {"env": MANY}, "too_long", ("env",)),
        (SandboxCreate, {"command": [0] * 200_000}, "string_type", ("command", 0)),
        (Tags, {"tags": MANY}, "too_long", ("tags",)),
        (EnvironmentCreate, {"name": "x", "quota": MANY}, "extra_forbidden", ("quota", "0")),
        (Exec, {"command": "true", "env": MANY}, "string_type", ("env",)),
        (Exec, {"argv": [0] * 200_000}, "string_type", ("argv", 0)),
        (ProcessStart, {"argv": ["true"], "pty": MANY}, "extra_forbidden", ("pty", "0")),
        (Said, {"type": "eof", **MANY}, "extra_forbidden", ("eof", "0")),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_so_it_is_deeper_within(model: type[BaseModel], data: object, kind: str, place: tuple[str | int, ...]) -> None:
    found = wrong(model, data)
    assert (found["type"], found["loc"]) == (kind, place)


def test_a_wrong_item_of_a_batch_costs_no_more(api: Api) -> None:
    got = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": [{}, {"image": "a", **MANY}]})
    assert got.status == 200
    assert "sandbox" in got.json["results"][0]
    assert got.json["results"][1]["error"]["field"] == "0"
    assert len(got.body) < 5000


def test_a_long_name_is_cut(api: Api) -> None:
    got = api.ask("POST", "/v1/sandboxes", {"x" * 500_000: 1})
    assert (got.status, got.json["field"]) == (400, "x" * 100)
    assert len(got.body) < 1000
