"""Which images go when they take too much of the disk."""

from __future__ import annotations

from shoal.actors.engines.oci.layers.eviction import Candidate, to_evict

SIZES = {"base": 100, "a": 10, "b": 20, "c": 30}
OLD = Candidate("old", ("base", "a"), 1.0, True)
OWN = Candidate("own", ("base", "b"), 2.0, False)
NEW = Candidate("new", ("base", "c"), 3.0, True)


def test_the_oldest_goes_first_and_only_as_many_as_needed() -> None:
    assert to_evict([NEW, OWN, OLD], SIZES, 160, ()) == []
    assert to_evict([NEW, OWN, OLD], SIZES, 155, ()) == ["old"]
    assert to_evict([NEW, OWN, OLD], SIZES, 150, ()) == ["old"]
    assert to_evict([NEW, OWN, OLD], SIZES, 149, ()) == ["old", "new"]


def test_what_is_here_alone_or_busy_stays() -> None:
    assert to_evict([NEW, OWN, OLD], SIZES, 0, ()) == ["old", "new"]
    assert to_evict([NEW, OWN, OLD], SIZES, 0, {"a", "base"}) == ["new"]


def test_a_shared_layer_goes_with_the_last_that_has_it() -> None:
    assert to_evict([OLD, NEW], SIZES, 0, ()) == ["old", "new"]
    twin = Candidate("twin", OLD.layers, 0.5, True)
    assert to_evict([twin, OLD], SIZES, 100, ()) == ["twin", "old"]
