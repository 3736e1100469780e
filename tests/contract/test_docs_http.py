"""The page about HTTP shows what happens: its commands run, with curl, against the API and a real agent."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from shoal.cluster.local import packages
from tests.cluster import printing
from tests.contract.client_relay import client_lab

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(600)  # the first time its programs are installed
def test_commands_of_the_page_run() -> None:
    packages.ensure({"curl": "curl", "jq": "jq"}, printing)
    text = PAGE.read_text("utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```sh")
    assert len(blocks) > 8
    script = "set -euo pipefail\nPS4='+ line ${LINENO}: '\nset -x\n" + "\n".join(blocks)
    with client_lab("http") as lab:
        assert lab.api is not None
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(
            ["bash", "-c", script],
            env={**kept, "SHOAL_URL": lab.api.url, "SHOAL_TOKEN": lab.token},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
