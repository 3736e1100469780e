"""Signing a browser in to the dashboard, and out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from shoal.cluster.api.access.auth import verify, verify_session
from shoal.cluster.api.access.sessions import Sessions
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.context import Cluster, context_of
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.schema.control import Sent, Told
from shoal.model import verbs
from shoal.model.errors import FailedPrecondition, InvalidRequest, QuotaExceeded, Unauthenticated

_NO_STORE = {"Cache-Control": "no-store"}


class SignIn(Sent):
    """What a browser signs in with: an API token, or a code."""

    token: Annotated[str, Field(max_length=4096)] | None = None
    code: Annotated[str, Field(max_length=256)] | None = None


class SignInCodeModel(Told):
    """A code that signs a browser in, once: open `/#sign-in=<code>`."""

    code: str
    expires_at: float


router = new_router("administration")


@verb_route(router, verbs.sign_in_code, status_code=201, response_model=SignInCodeModel, summary="Make a sign-in code")
async def create_sign_in_code(cluster: Cluster) -> Json:
    """A code with which one browser signs in to the dashboard as this token, within ten minutes."""
    return Json((await cluster.ask(verbs.sign_in_code)).to_dict(), 201, _NO_STORE)


@router.post("/v1/session", include_in_schema=False)
async def sign_in(body: SignIn, request: Request, cluster: Cluster) -> Json:
    """Opens a session. The answer is the token's description."""
    sessions: Sessions = request.app.state.sessions
    sessions.check_same_origin(request)
    if not sessions.possible:
        raise FailedPrecondition(
            "nobody can sign in here: pages of sandboxes share this address (`api.confine_tunnels` is off) and could "
            "read the dashboard's",
            state="unconfined",
        )
    context, tokens = context_of(request), request.app.state.tokens
    if (body.token is None) == (body.code is None):
        raise InvalidRequest("token: give either a token or a code", field="token")
    if body.token is not None:
        info = await verify(tokens, body.token.strip(), context.address)
    else:
        wait_s = tokens.failures.wait_s(context.address)
        if wait_s > 0:
            raise QuotaExceeded("too many wrong tokens come from your address", retry_after=wait_s)
        try:
            token_id = await cluster.ask(verbs.redeem_sign_in_code, body.code or "")
        except Unauthenticated:
            tokens.failures.note(context.address)
            raise
        info = await verify_session(tokens, token_id)
        await _check_same_token(request, info.id)
    response = Json(info.to_dict(), headers=_NO_STORE)
    await sessions.open(request, response, info)
    return response


async def _check_same_token(request: Request, token_id: str) -> None:
    """A link, which anybody may have sent, does not make a browser go on as somebody else without a word."""
    try:
        before = await request.app.state.sessions.token_id(request)
        if before is None or (await verify_session(request.app.state.tokens, before)).id == token_id:
            return
    except Unauthenticated:
        return  # that session has ended
    raise FailedPrecondition(
        "you are signed in with another token than the link's; sign out, then open a new link", state="signed_in"
    )


@router.delete("/v1/session", status_code=204, include_in_schema=False)
async def sign_out(request: Request) -> Response:
    """Removes the cookie. The session itself is bounded by its time, and by its token."""
    sessions: Sessions = request.app.state.sessions
    sessions.check_same_origin(request)
    response = Response(status_code=204)
    sessions.close(request, response)
    return response
