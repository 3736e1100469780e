"""Where settings come from, and what travels with a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.model.settings import Settings


@pytest.mark.parametrize("text", ["[pools]\nidle_slotz = 4\n", "[node\n", "[pools]\nidle_slots = 'x'\n"])
def test_what_was_carried_here_does_not_depend_on_what_lies_here(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Settings(state_dir=tmp_path)
    file = tmp_path / "settings.toml"
    file.write_text(text)
    monkeypatch.setenv("SHOAL_SETTINGS", str(file))
    monkeypatch.setenv("SHOAL_NODE__NOPE", "1")
    monkeypatch.setenv("SHOAL_RUN_DIR", "/somewhere/else")
    carried = Settings.from_dict(before.to_dict())
    assert carried == before
    assert type(carried) is Settings
