"""The pages of the documentation's site, before they are built: `make docs` does that, and checks their anchors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("docs_site_build", ROOT / "docs" / "site" / "build.py")
assert _SPEC is not None
assert _SPEC.loader is not None
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)


def test_every_link_of_a_page_leads_to_a_page(tmp_path: Path) -> None:
    build.write(tmp_path)
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.md")}
    assert {"index.md", "docs/python.md", "notebooks/rollouts.ipynb.md", "reference.md"} <= pages
    assert "](docs/python.md)" in (tmp_path / "index.md").read_text()
    assert "](../shoal/configs/prometheus.yaml.md)" in (tmp_path / "docs" / "telemetry.md").read_text()
    assert "data:image/png" in (tmp_path / "notebooks" / "rollouts.ipynb.md").read_text()
    navigation = (ROOT / "docs" / "site" / "zensical.toml").read_text()
    assert [page for page in pages if page.startswith("docs/") and f'"{page}"' not in navigation] == []


def test_a_link_to_what_is_not_there_is_refused_and_code_has_none(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("[a](b.py)\n\n```\n[x](not/a/link)\n```\n\n[up](https://example.org/a)\n")
    pages = build.Pages(tmp_path, tmp_path / "out")
    with pytest.raises(build.BrokenLink, match="links to b"):
        pages.write(["README.md"])
    (tmp_path / "b.py").write_text("print()\n")
    build.Pages(tmp_path, tmp_path / "out").write(["README.md"])
    assert "[a](b.py.md)" in (tmp_path / "out" / "index.md").read_text()
