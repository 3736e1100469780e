"""A switch that was given a value: the value would be the image."""

from __future__ import annotations

import pytest

from shoal.cli.spec_options import check_switches
from shoal.model.errors import InvalidRequest


def test_a_value_for_a_switch_is_not_taken_for_an_image() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_switches("no", {"wait_for_capacity": True, "region": "eu"})
    assert "--no-wait-for-capacity" in refused.value.message
    check_switches("no", {"wait_for_capacity": False, "region": "eu"})
    check_switches("shoal/base", {"wait_for_capacity": True})
