"""`shoal image load`, on a machine with the direct engine."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from shoal.cluster.local import load_image
from shoal.cluster.local.engines.oci import OciLocal
from shoal.model.errors import FailedPrecondition, InvalidRequest
from shoal.model.report import silent
from shoal.model.settings import Settings

pytestmark = pytest.mark.usefixtures("as_root")  # owners and overlayfs's attributes are root's to set


def test_a_root_filesystem_is_loaded_under_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(state_dir=tmp_path)
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("file"), io.BytesIO())
    with pytest.raises(FailedPrecondition):
        load_image.load(settings, str(archive), "app:1", root=True, report=silent)
    engine = OciLocal(tmp_path / "oci", settings)
    monkeypatch.setattr(load_image, "_engine", lambda _: engine)
    digest = load_image.load(settings, str(archive), "app:1", root=True, report=silent)
    assert digest.startswith("sha256:")
    assert engine.has_image("app:1")
    for source, field in ((str(archive), "image"), (str(tmp_path / "missing"), "source")):
        with pytest.raises(InvalidRequest) as refused:
            load_image.load(settings, source, "app:2", root=False, report=silent)
        assert refused.value.field == field
