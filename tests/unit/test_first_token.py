"""Which token the operator of a machine has after the API was started, mended or rolled.

Whether the API answers plays no part.
"""

from __future__ import annotations

import time

import pytest

from shoal.cluster.serving.first_token import NAME, choose
from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, Scope
from tests.fakes.cluster import FakeTransport

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster() -> FakeTransport:
    return FakeTransport()


async def good(cluster: FakeTransport) -> list[str]:
    """The names of the tokens that are not revoked."""
    return [token.name for token in await cluster.ask(verbs.tokens) if token.valid(time.time())]


async def test_a_good_token_stays(cluster: FakeTransport) -> None:
    first = await choose(None, cluster)
    assert await choose(first, cluster) == first
    _, own = await cluster.ask(verbs.create_token, "my own", ANY_ENVIRONMENT, Scope.READ, None)
    assert await choose(own, cluster) == own
    assert sorted(await good(cluster)) == ["my own", NAME]


@pytest.mark.parametrize(
    "known", [None, "", "nonsense", "shoal_tk-aaaaaaaaaaaaaaaa_" + "a" * 32, "changed", "revoked", "expired"]
)
async def test_one_that_is_not_good_is_replaced_by_one_that_may_do_everything(
    known: str | None, cluster: FakeTransport
) -> None:
    first = await choose(None, cluster)
    _, other = await cluster.ask(verbs.create_token, "other", ANY_ENVIRONMENT, Scope.READ, 1e-9)
    if known == "changed":
        known = first[:-1] + ("a" if first[-1] == "b" else "b")
    elif known == "revoked":
        revoked, known = await cluster.ask(verbs.create_token, "revoked", ANY_ENVIRONMENT, Scope.ADMIN, None)
        await cluster.ask(verbs.revoke_token, revoked.id)
    elif known == "expired":
        known = other
    second = await choose(known, cluster)
    assert second not in (first, known)
    assert await good(cluster) == [NAME]
    made, *_ = await cluster.ask(verbs.tokens)
    assert (made.name, made.scope, made.environment, made.expires_at) == (NAME, Scope.ADMIN, ANY_ENVIRONMENT, None)
