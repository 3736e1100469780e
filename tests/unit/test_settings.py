"""Where settings come from, and what travels with a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from shoal.model.settings import Settings, TelemetrySettings


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


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("traces", "http://collector:4318", True),
        ("traces", "https://collector/otlp", True),
        ("traces", "collector:4318", False),
        ("traces", "https://user:password@collector", False),
        ("sink", "file:///var/log/shoal.ndjson", True),
        ("sink", "otlp+http://collector:4318", True),
        ("sink", "https://logs.example.com/ingest?x=1", True),
        ("sink", "file://relative", False),
        ("sink", "/var/log/shoal", False),
        ("sink", "ftp://logs", False),
    ],
)
def test_where_telemetry_goes_is_checked(name: str, value: str, good: bool) -> None:
    if good:
        assert getattr(TelemetrySettings.model_validate({name: value}), name) == value
    else:
        with pytest.raises(ValidationError):
            TelemetrySettings.model_validate({name: value})
