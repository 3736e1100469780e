"""What sandboxes take over from their machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.actors import inherited_settings
from shoal.actors.inherited_settings import CA_TARGET, CA_VARIABLES, inherit, parse_pip_config
from shoal.model.errors import FailedPrecondition
from shoal.model.settings import HostSettings

ALL = {
    "SSL_CERT_FILE": "/nowhere",
    "http_proxy": "http://proxy.test:3128",
    "NO_PROXY": "localhost",
    "PIP_INDEX_URL": "https://index.test/simple",
}


def test_nothing_unless_the_operator_says_so() -> None:
    taken = inherit(HostSettings(), ALL, {"index-url": "https://other.test"})
    assert taken.env == {}
    assert taken.mounts == ()


def test_ca_bundle_is_mounted_read_only_and_pointed_at(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    taken = inherit(HostSettings(ca_bundle=True), {"REQUESTS_CA_BUNDLE": str(bundle)}, {})
    (mount,) = taken.mounts
    assert (mount.source, mount.target, mount.read_only) == (bundle, CA_TARGET, True)
    assert taken.env == dict.fromkeys(CA_VARIABLES, CA_TARGET)


def test_ca_bundle_behind_a_link_is_the_file_itself(tmp_path: Path) -> None:
    """A mount of a link would be a mount of what it led to when it was made."""
    bundle, link = tmp_path / "ca.pem", tmp_path / "link.pem"
    bundle.write_text("certificates")
    link.symlink_to(bundle)
    assert inherit(HostSettings(ca_bundle=True), {}, {"cert": str(link)}).mounts[0].source == bundle


def test_ca_bundle_that_is_nowhere_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inherited_settings, "CA_BUNDLES", ())
    with pytest.raises(FailedPrecondition, match="ca-certificates"):
        inherit(HostSettings(ca_bundle=True), {}, {})


def test_proxy_goes_along_in_both_spellings_and_lower_case_wins() -> None:
    environ = {
        "https_proxy": "http://lower.test",
        "HTTPS_PROXY": "http://upper.test",
        "NO_PROXY": "localhost",
        "http_proxy": "",
    }
    assert inherit(HostSettings(proxy=True), environ, {}).env == {
        "https_proxy": "http://lower.test",
        "HTTPS_PROXY": "http://lower.test",
        "no_proxy": "localhost",
        "NO_PROXY": "localhost",
    }


def test_package_index_comes_from_the_environment_before_pips_files() -> None:
    pip = {"index-url": "https://file.test/simple", "extra-index-url": "https://extra.test/simple"}
    assert inherit(HostSettings(package_index=True), {"PIP_INDEX_URL": "https://env.test/simple"}, pip).env == {
        "PIP_INDEX_URL": "https://env.test/simple",
        "PIP_EXTRA_INDEX_URL": "https://extra.test/simple",
    }


def test_pip_config_is_read_as_pip_prints_it() -> None:
    text = (
        ":env:.index-url='https://env.test/simple'\n"
        "global.index-url='https://global.test/simple'\n"
        "install.index-url='https://install.test/simple'\n"
        "global.trusted-host='a.test\\nb.test'\n"
        "download.index-url='https://download.test/simple'\n"
        "nonsense\n"
    )
    assert parse_pip_config(text) == {"index-url": "https://install.test/simple", "trusted-host": "a.test b.test"}


def test_this_machines_pip_is_asked() -> None:
    assert isinstance(inherited_settings.pip_config(), dict)
