"""What is wrong with a spec is said at once, with the field and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.errors import InvalidRequest
from shoal.model.settings import Limits
from shoal.model.spec_model import check_spec
from shoal.model.validate import check_number
from tests.unit.builders import resources, spec

NAN = float("nan")

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("image", {"image": ""}, "image"),
    ("no image", {"image": None}, "image"),
    ("image NUL", {"image": "a\0b"}, "image"),
    ("name", {"name": "no spaces"}, "name"),
    ("long name", {"name": "x" * 65}, "name"),
    ("environment", {"environment": "-"}, "environment"),
    ("hostname", {"hostname": "under_score"}, "hostname"),
    ("no environment", {"environment": None}, "environment"),
    ("workdir", {"workdir": "relative/path"}, "workdir"),
    ("user", {"user": "root\0"}, "user"),
    ("timeout zero", {"timeout": 0}, "timeout"),
    ("timeout nan", {"timeout": NAN}, "timeout"),
    ("timeout huge", {"timeout": 1e12}, "timeout"),
    ("idle", {"idle_timeout": -1}, "idle_timeout"),
    ("network", {"network": "host"}, "network"),
    ("runtime", {"runtime": "kvm"}, "runtime"),
    ("empty program", {"command": ("",)}, "command"),
    ("NUL in argv", {"command": ("echo", "a\0b")}, "command"),
    ("lone surrogate", {"command": ("echo", "\ud800")}, "command"),
    ("one huge argument", {"command": ("echo", "x" * (128 * 1024 + 1))}, "command"),
    ("huge argv", {"command": ("echo", *["x" * 100_000] * 20)}, "command"),
    ("many arguments", {"command": ("echo",) * 5000}, "command"),
    ("env name", {"env": {"A=B": "c"}}, "env"),
    ("env empty name", {"env": {"": "c"}}, "env"),
    ("env NUL", {"env": {"A": "c\0"}}, "env"),
    ("env huge", {"env": {f"V{i}": "x" * 100_000 for i in range(20)}}, "env"),
    ("tags", {"tags": {str(i): "" for i in range(65)}}, "tags"),
    ("tag value", {"tags": {"a": "x" * 257}}, "tags"),
    ("idempotency key", {"idempotency_key": "x" * 129}, "idempotency_key"),
    ("idempotency key of other than ASCII", {"idempotency_key": "clé"}, "idempotency_key"),
    ("idempotency key with a line's end", {"idempotency_key": "a\n"}, "idempotency_key"),
    ("idempotency key with a space at its end", {"idempotency_key": "a "}, "idempotency_key"),
    ("empty idempotency key", {"idempotency_key": ""}, "idempotency_key"),
    ("idempotency key that is no text", {"idempotency_key": 7}, "idempotency_key"),
    ("region", {"regions": ("x" * 64,)}, "region"),
    ("region that is no label", {"regions": ("eu west",)}, "region"),
    ("region twice", {"regions": ("eu", "us", "eu")}, "region"),
    ("too many regions", {"regions": tuple(f"r{number}" for number in range(17))}, "region"),
    ("zone", {"zone": ""}, "zone"),
    ("placement", {"placement": "scatter"}, "placement"),
    ("wait_for_capacity", {"wait_for_capacity": "no"}, "wait_for_capacity"),
    ("cpu zero", {"resources": resources(cpu_request=0)}, "cpu"),
    ("cpu negative", {"resources": resources(cpu_limit=-1)}, "cpu"),
    ("cpu text", {"resources": resources(cpu_request="2")}, "cpu"),
    ("cpu bool", {"resources": resources(cpu_request=True)}, "cpu"),
    ("cpu absurd", {"resources": resources(cpu_request=1e9, cpu_limit=1e9)}, "cpu"),
    ("cpu above its limit", {"resources": resources(cpu_request=2.0)}, "cpu"),
    ("memory zero", {"resources": resources(memory_request=0)}, "memory"),
    ("memory too small to hold anything", {"resources": resources(memory_request=1, memory_limit=4)}, "memory"),
    ("memory above its limit", {"resources": resources(memory_request=2048)}, "memory"),
    ("memory fraction", {"resources": resources(memory_limit=1024.5)}, "memory"),
    ("disk", {"resources": resources(disk=0)}, "disk"),
    ("pids", {"resources": resources(pids=0)}, "pids"),
    ("pids absurd", {"resources": resources(pids=10**9)}, "pids"),
    ("gpu", {"resources": resources(gpu=-1)}, "gpu"),
]


@pytest.mark.parametrize(("changes", "field"), [(c, f) for _, c, f in WRONG], ids=[name for name, _, _ in WRONG])
def test_names_field_and_remedy(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_spec(spec(**changes), Limits())
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}:")


def test_what_is_right_passes() -> None:
    check_spec(
        spec(
            command=("python3", "-c", "print('ü')", ""),
            name="a.b-c_1",
            env={"EMPTY": "", "PATH": "/bin"},
            tags={"run": "7", "empty": ""},
            workdir="/work",
            user="1000:1000",
            idle_timeout=0.5,
            network="none",
            regions=("r" * 63, "eu-west-1"),
            zone="eu-west-1a",
            idempotency_key="~ " * 63 + "!",
        ),
        Limits(),
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0, 0, 1 << 24, "MiB", True), "give a whole number of MiB of at least 1, at most 16777216"),
        ((99999, -1, 65535, "a port", True), "of at least 0, at most 65535"),
        ((-1.0, 0, 1024, "cores", False), "give a number of cores above 0, at most 1024"),
    ],
)
def test_bounds_are_written_as_people_write_them(arguments: tuple[float, float, float, str, bool], told: str) -> None:
    value, above, most, unit, whole = arguments
    with pytest.raises(InvalidRequest) as caught:
        check_number("field", value, above, most, unit, whole=whole)
    assert caught.value.message.endswith(told)


@pytest.mark.parametrize(
    "value",
    [10**5000, -(10**5000), 10**400, 1e308, float("inf"), NAN],
    ids=["endless", "endless below 0", "long", "large", "infinite", "none"],
)
def test_numbers_of_any_length_are_out_of_range(value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_number("field", value, 0, 100, "seconds")
    assert caught.value.field == "field"
    assert len(caught.value.message) < 120, "it does not repeat all digits"
