"""The page for operators tells every setting, as it is."""

from __future__ import annotations

from shoal.model.settings import Settings
from tests.settings_table import PAGE, fields, page


def test_page_is_as_the_settings_are() -> None:
    text = PAGE.read_text("utf-8")
    assert text == page(text), "run `python -m tests.settings_table`"


def test_page_tells_every_setting_and_what_it_means() -> None:
    text = PAGE.read_text("utf-8")
    named = dict(fields(Settings))
    assert {"state_dir", "pools.idle_slots", "host.proxy"} <= set(named)
    for name, field in named.items():
        assert f"| `{name}` | " in text
        assert field.description, f"{name} has no meaning"
