"""Settings that are nearly right."""

from __future__ import annotations

import pytest

from shoal.cli import settings
from shoal.model.errors import InvalidRequest


@pytest.mark.parametrize("name", ["SHOAL_ENGIN", "SHOAL_STATEDIR", "SHOAL_API_PORT", "SHOAL_NETWORK_BRIDGE"])
def test_a_variable_that_is_nearly_a_settings_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settings.check_variables({name: "x"})
    assert caught.value.field == name


def test_other_variables_are_left_alone() -> None:
    names = (
        "SHOAL_ENGINE",
        "SHOAL_API__PORT",
        "SHOAL_URL",
        "SHOAL_CA",
        "SHOAL_DEBUG",
        "SHOAL_SETTINGS",
        "SHOAL_MINE",
        "PATH",
    )
    settings.check_variables(dict.fromkeys(names, "x"))


def test_an_unknown_setting_of_a_section_is_told_with_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_POOLS__READYY", "3")
    with pytest.raises(InvalidRequest, match=r"pools\.ready ") as caught:
        settings.load()
    assert caught.value.field == "pools.readyy"
