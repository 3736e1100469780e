"""The table of verbs: every verb has a handler that takes and gives what was declared, and its callers' scope is
checked.
"""

from __future__ import annotations

import inspect
import re

import pytest

from shoal.actors.controller.handlers import answer, handlers
from shoal.cluster.api.app import routers
from shoal.cluster.api.request.route import ApiRoute
from shoal.model import verbs
from shoal.model.access import INSIDE, Caller, Quota, Scope
from shoal.model.errors import InvalidRequest, PermissionDenied
from shoal.model.verbs import VERBS, Retry
from shoal.transport.http_verbs import request_for
from tests.unit.controller_world import World

pytestmark = pytest.mark.anyio


async def test_each_verb_has_a_handler_that_takes_its_arguments() -> None:
    known = handlers((await World().controller()).parts)
    assert known.keys() == VERBS.keys()
    for name, verb in VERBS.items():
        declared = inspect.signature(verb.declaration)
        handler = inspect.signature(known[name])
        wanted = [parameter.annotation for parameter in declared.parameters.values()]
        taken = [parameter.annotation for parameter in handler.parameters.values()]
        assert taken == (wanted if verb.scope is None else [*wanted, "Caller"]), name
        assert handler.return_annotation == declared.return_annotation, name


async def test_the_scope_of_the_caller_is_checked_before_anything_is_done() -> None:
    known = handlers((await World().controller()).parts)
    reader, runner = Caller("tk-1", "*", Scope.READ), Caller("tk-2", "*", Scope.RUN)
    other = Caller("tk-3", "dev", Scope.ADMIN)
    for who, name in ((reader, "terminate"), (runner, "create_token"), (other, "create_environment"), (other, "nodes")):
        with pytest.raises(PermissionDenied):
            await answer(known, name, ("x",), who)
    assert await answer(known, "environments", (), reader)
    with pytest.raises(InvalidRequest):
        await answer(known, "fly", (), INSIDE)


def test_what_is_not_the_same_twice_is_never_sent_again() -> None:
    never = {name for name, verb in VERBS.items() if verb.retry is Retry.NEVER}
    assert never == {
        *("create_environment", "delete_environment", "create_token"),
        *("delete_pool", "delete_volume", "delete_secret", "redeem_sign_in_code"),
        *("snapshot_volume", "delete_version"),
    }


def test_each_address_in_the_table_is_a_route_of_the_api() -> None:
    served = {(m, r.path) for router in routers() for r in router.routes if isinstance(r, ApiRoute) for m in r.methods}
    assert {(verb.method, verb.path) for verb in VERBS.values() if verb.path} <= served
    for verb in VERBS.values():
        assert set(re.findall(r"{(\w+)}", verb.path)) <= verb.signature.parameters.keys()


def test_arguments_go_where_the_table_says() -> None:
    named = verbs.tunnel_token.named(("sb/1", 80, 60.0), {})
    assert request_for(verbs.tunnel_token, named) == (
        "/v1/sandboxes/sb%2F1/tunnels/80/token",
        None,
        {"expires_in": 60.0},
    )
    named = verbs.find.named(("a b", "dev"), {})
    assert request_for(verbs.find, named) == ("/v1/sandboxes/by-name/a%20b", {"environment": "dev"}, None)
    quota = Quota(sandboxes=1)
    assert request_for(verbs.set_quota, {"name": "dev", "quota": quota}).body == quota.to_dict()
    created = request_for(verbs.create_environment, {"name": "dev", "quota": quota})
    assert created.body == {"name": "dev", "quota": quota.to_dict()}
    assert request_for(verbs.nodes, {}) == ("/v1/nodes", None, None)
