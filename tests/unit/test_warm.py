"""Which containers are kept warm."""

from __future__ import annotations

from shoal.actors.node.warm import WarmPool
from shoal.model.settings import NodeSettings
from tests.unit.builders import resources, spec

A = spec().container_shape
B = spec(resources=resources(memory_limit=512)).container_shape
C = spec(network="none").container_shape


def pool(**settings: object) -> WarmPool:
    values = {"warm_containers": 2, "warm_shapes": 2, "warm_after": 2, "warm_linger": 10.0, **settings}
    return WarmPool(NodeSettings.model_validate(values))


def test_one_create_keeps_nothing_warm() -> None:
    warm = pool()
    warm.note_create(A, 0.0)
    assert warm.missing(1.0) is None


def test_a_shape_in_use_is_filled_and_taken_oldest_first() -> None:
    warm = pool()
    warm.note_create(A, 0.0)
    warm.note_create(A, 1.0)
    assert warm.missing(1.0) == A
    warm.put(A, "c-1")
    warm.put(A, "c-2")
    assert warm.missing(1.0) is None
    assert warm.take(A) == "c-1"
    assert warm.take(B) is None
    assert warm.missing(1.0) == A


def test_creates_far_apart_do_not_count() -> None:
    warm = pool()
    warm.note_create(A, 0.0)
    warm.note_create(A, 11.0)
    assert warm.missing(11.0) is None


def test_only_the_latest_shapes_are_kept() -> None:
    warm = pool()
    for at, shape in enumerate((A, A, B, B, C, C)):
        warm.note_create(shape, float(at))
    warm.put(A, "c-old")
    assert warm.wanted(5.0) == [C, B]
    assert warm.surplus(5.0) == ["c-old"]
    assert warm.keys == set()


def test_a_shape_that_is_not_used_any_more_is_given_up() -> None:
    warm = pool()
    warm.note_create(A, 0.0)
    warm.note_create(A, 1.0)
    warm.put(A, "c-1")
    assert warm.surplus(10.5) == []
    assert warm.surplus(11.5) == ["c-1"]


def test_switched_off() -> None:
    warm = pool(warm_containers=0)
    warm.note_create(A, 0.0)
    warm.note_create(A, 0.0)
    assert warm.missing(0.0) is None


def test_a_dead_one_is_forgotten() -> None:
    warm = pool()
    warm.put(A, "c-1")
    assert warm.discard("c-1")
    assert not warm.discard("c-1")
    assert warm.take(A) is None
