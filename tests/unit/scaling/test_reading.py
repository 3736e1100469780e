"""`cluster.yaml`: what is wrong in it is told with its line and field, and the examples are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shoal.cluster.scaling.reading import read_file, read_text
from shoal.cluster.scaling.spec import AwsCluster, LocalCluster, types_of
from shoal.model.errors import InvalidRequest

CONFIGS = Path(__file__).parents[3] / "shoal" / "configs"

GOOD = """
name: prod
provider: local
regions:
  eu:
    types:
      cpu: {cpus: 4, memory: 8192, min: 1, max: 3, price: 0.5}
  us:
    max: 2
    types:
      cpu: {cpus: 4, memory: 8192, max: 3, price: 0.4}
"""


def test_a_good_file() -> None:
    cluster = read_text(GOOD)
    assert isinstance(cluster, LocalCluster)
    assert [(name, kind.min, kind.max) for name, kind in types_of(cluster)] == [("eu.cpu", 1, 3), ("us.cpu", 0, 3)]
    assert cluster.idle_timeout == 300


@pytest.mark.parametrize(
    ("old", "new", "field", "line"),
    [
        ("min: 1, max: 3", "min: 4, max: 3", "regions.eu.types.cpu", 7),
        ("cpus: 4", "cpus: many", "regions.eu.types.cpu.cpus", 7),
        ("cpus: 4", "cpus: -4", "regions.eu.types.cpu.cpus", 7),
        ("max: 3", "max: 1000000", "regions.eu.types.cpu.max", 7),
        ("price: 0.5", "price: .nan", "regions.eu.types.cpu.price", 7),
        ("min: 1", "minn: 1", "regions.eu.types.cpu.minn", 7),
        ("    max: 2", "    maxx: 2", "regions.us.maxx", 9),
        ("provider: local", "provider: gcp", "provider", 3),
        ("provider: local", "provider: aws", "head", 1),
        ("name: prod", "name: Prod!", "name", 2),
        ("name: prod", "name: prod\nmax_nodes: 0", "cluster", 1),
        ("name: prod", "name: prod\nmax_cost_per_hour: 0.1", "cluster", 1),
        ("name: prod", "name: prod\nidle_timeout: 0", "idle_timeout", 3),
        ("  us:", "  eu:", "eu", 8),
        ("regions:", "regions: []\nregion:", "regions", 4),
        ("name: prod", "name: *x", "cluster", 2),
        ("name: prod", "name: [", "cluster", 4),
    ],
)
def test_what_is_wrong_is_told(old: str, new: str, field: str, line: int) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_text(GOOD.replace(old, new, 1))
    assert raised.value.field == field
    assert raised.value.message.startswith(f"cluster.yaml:{line}: ")


def test_limits_that_cannot_hold_together() -> None:
    for extra in ("max_cost_per_hour: 5", "max_nodes: 1"):
        read_text(f"{extra}\n{GOOD}")
    free = GOOD.replace(", price: 0.4", "")
    with pytest.raises(InvalidRequest):
        read_text(f"max_cost_per_hour: 5\n{free}")
    with pytest.raises(InvalidRequest):
        read_text(GOOD.replace("    max: 2", "    max: 0").replace("max: 3, price: 0.4", "min: 1, max: 3, price: 0.4"))


def test_a_zone_without_a_subnet_is_told() -> None:
    text = (CONFIGS / "aws.yaml").read_text().replace("zone: us-east-1a", "zone: us-east-1z")
    with pytest.raises(InvalidRequest) as raised:
        read_text(text, "aws.yaml")
    assert raised.value.field == "regions.us-east-1"


@pytest.mark.parametrize("text", ["", "[]", "a: " + "[" * 5000, "\x00", "name: x\n" * 3])
def test_what_is_no_description(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_text(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        read_file(tmp_path / "none.yaml")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(InvalidRequest):
        read_file(large)


def test_the_examples_are_right() -> None:
    assert isinstance(read_file(CONFIGS / "local.yaml"), LocalCluster)
    aws = read_file(CONFIGS / "aws.yaml")
    assert isinstance(aws, AwsCluster)
    assert len(aws.regions) == 3
    assert yaml.safe_load((CONFIGS / "kuberay.yaml").read_text())["kind"] == "RayCluster"
