"""The error tree: complete, distinct, and the same after a journey."""

from __future__ import annotations

import json
import pickle

import pytest

from shoal.model import errors


@pytest.mark.parametrize("cls", list(errors.error_classes()), ids=lambda c: c.__name__)
def test_survives_pickle_and_json(cls: type[errors.ShoalError]) -> None:
    error = cls("what and why", field="cpu", state="running", reason="timeout")
    for copy in (pickle.loads(pickle.dumps(error)), errors.error_from_dict(json.loads(json.dumps(error.to_dict())))):
        assert type(copy) is cls
        assert str(copy) == "what and why"
        assert copy.fields == error.fields
        assert copy.retryable == error.retryable


def test_codes_are_distinct_and_drawn() -> None:
    classes = list(errors.error_classes())
    assert len({c.code for c in classes}) == len(classes)
    assert errors.__doc__ is not None
    for cls in classes:
        assert cls.__name__ in errors.__doc__, f"{cls.__name__} is missing in the drawing of the tree"


def test_only_a_lost_node_makes_an_ended_sandbox_retryable() -> None:
    assert errors.SandboxEnded("gone", reason="node_lost").retryable
    ended = errors.SandboxEnded("gone", reason="timeout", exit_code=3)
    assert not ended.retryable
    assert (ended.reason, ended.exit_code) == ("timeout", 3)


def test_an_unknown_code_still_makes_sense() -> None:
    error = errors.error_from_dict({"code": "from_the_future", "message": "hello", "field": "x"})
    assert isinstance(error, errors.Internal)
    assert "from_the_future" in str(error)
