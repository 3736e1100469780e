"""Which part of the controller answers which verb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any

from shoal.actors.controller.parts import Parts
from shoal.model import call_context, tracing, verbs
from shoal.model.access import Caller
from shoal.model.errors import InvalidRequest
from shoal.model.info import SandboxInfo
from shoal.model.spec import SandboxSpec
from shoal.model.visibility import check_may

Handler = Callable[..., Awaitable[Any] | Any]
"""Takes the verb's arguments in their order, and then the caller where the verb has a scope."""


def handlers(parts: Parts) -> Mapping[str, Handler]:
    """The handler of each verb, by the verb's name."""
    starting = parts.starting
    sandboxes, tunnels, accounts, event_feed = parts.sandboxes, parts.tunnels, parts.accounts, parts.event_feed
    found: dict[verbs.Verb[..., Any], Handler] = {
        verbs.create: sandboxes.create,
        verbs.create_many: sandboxes.create_many,
        verbs.give_up: sandboxes.give_up,
        verbs.get: sandboxes.get,
        verbs.find: sandboxes.find,
        verbs.list_sandboxes: sandboxes.select,
        verbs.set_tags: sandboxes.set_tags,
        verbs.terminate: sandboxes.terminate,
        verbs.stop: starting.stop,
        verbs.start: starting.start,
        verbs.pause: parts.pausing.pause,
        verbs.resume: starting.resume,
        verbs.suspend: starting.suspend,
        verbs.wake: starting.wake,
        verbs.wait: sandboxes.wait,
        verbs.renew: sandboxes.renew,
        verbs.grant: sandboxes.grant,
        verbs.logs: sandboxes.logs,
        verbs.orphans: sandboxes.orphans,
        verbs.expose: tunnels.expose,
        verbs.unexpose: tunnels.unexpose,
        verbs.tunnels: tunnels.tunnels,
        verbs.tunnel_token: tunnels.token,
        verbs.tunnel_secret: tunnels.tell_secret,
        verbs.create_environment: accounts.create_environment,
        verbs.environments: accounts.environments,
        verbs.environment: accounts.environment,
        verbs.set_quota: accounts.set_quota,
        verbs.delete_environment: accounts.delete_environment,
        verbs.create_token: accounts.create_token,
        verbs.tokens: accounts.tokens,
        verbs.revoke_token: accounts.revoke_token,
        verbs.stored_token: accounts.stored_token,
        verbs.token_ids: accounts.token_ids,
        verbs.sign_in_code: parts.sign_ins.make,
        verbs.redeem_sign_in_code: parts.sign_ins.redeem,
        verbs.session_secret: parts.sign_ins.tell_secret,
        verbs.audit: event_feed.audit,
        verbs.events: event_feed.events,
        verbs.last_event: event_feed.last_event,
        verbs.report: parts.report,
        verbs.metrics: parts.collect_metrics,
        verbs.sandbox_usage: parts.usage_accounts.usage,
        verbs.profile: sandboxes.profile,
        verbs.loads: parts.usage_accounts.loads,
        verbs.usage: parts.usage_accounts.sums,
        verbs.overview: parts.overview_book.overview,
        verbs.defaults: parts.defaults,
        verbs.nodes: parts.node_infos,
        verbs.report_capacity: parts.demand.report_capacity,
        verbs.demand: parts.demand.demand,
        verbs.cordon: parts.machines.cordon,
        verbs.uncordon: parts.machines.uncordon,
        verbs.drain_node: parts.machines.drain,
        verbs.admit_node: parts.machines.admit,
        verbs.create_pool: parts.declared_pools.create,
        verbs.pools: parts.declared_pools.pools,
        verbs.pool: parts.declared_pools.pool,
        verbs.resize_pool: parts.declared_pools.resize,
        verbs.delete_pool: parts.declared_pools.delete,
        verbs.create_secret: parts.secrets.create,
        verbs.secrets: parts.secrets.secrets,
        verbs.secret: parts.secrets.secret,
        verbs.delete_secret: parts.secrets.delete,
        verbs.rotate_secrets: parts.secrets.rotate,
        verbs.create_volume: parts.volumes.create,
        verbs.volumes: parts.volume_uses.listed,
        verbs.volume: parts.volume_uses.volume,
        verbs.volumes_use: parts.volume_uses.of_environment,
        verbs.limit_volume: parts.volumes.limit,
        verbs.delete_volume: parts.volume_files.delete_volume,
        verbs.restore_volume: parts.volumes.undelete,
        verbs.commit_volume: parts.volumes.commit,
        verbs.open_volume: parts.volume_files.open,
        verbs.rename_volume: parts.volumes.rename,
        verbs.snapshot_volume: parts.volume_versions.snapshot,
        verbs.revert_volume: parts.volume_versions.revert,
        verbs.delete_version: parts.volume_versions.delete,
        verbs.snapshot_filesystem: parts.snapshots.snapshot,
        verbs.mount_image: parts.image_mounts.mount,
        verbs.unmount_image: parts.image_mounts.unmount,
        verbs.checkpoint: parts.snapshots.checkpoint,
        verbs.fork: parts.forks.fork,
        verbs.save_build: parts.snapshots.save_build,
        verbs.list_images: parts.images.page,
        verbs.get_image: parts.images.get,
        verbs.delete_image: parts.images.delete,
        verbs.name_image: parts.images.name,
        verbs.collect_images: parts.images.collect,
        verbs.find_image: parts.images.find,
        verbs.unknown_images: parts.images.unknown,
        verbs.pull_image: parts.registry_pulls.pull,
        verbs.push_image: parts.image_push.push,
        verbs.build_image: parts.builds.build_image,
        verbs.builds: parts.builds.builds,
        verbs.get_build: parts.builds.get_build,
        verbs.build_log: parts.builds.build_log,
        verbs.put_build_files: parts.builds.put_build_files,
        verbs.base_image: parts.builds.base_image,
        verbs.report_rollout: parts.rollouts.report_rollout,
        verbs.rollouts: parts.rollouts.rollouts,
        verbs.rollout: parts.rollouts.rollout,
    }
    return {verb.name: handler for verb, handler in found.items()}


async def answer(
    known: Mapping[str, Handler],
    name: str,
    arguments: tuple[Any, ...],
    caller: Caller,
    carrier: Mapping[str, str] | None = None,
) -> Any:
    """What the verb of that name gives; `PermissionDenied` where the caller's scope does not cover it. `carrier`: what
    the call belongs to, as `call_context.carried` tells it."""
    call_context.enter(carrier)
    verb = verbs.VERBS.get(name)
    if verb is None:
        raise InvalidRequest(f"the controller knows no {name!r}: it is of another version than the caller")
    # A trace may begin with what a caller does, not with what the cluster's parts ask one another all the time.
    with tracing.span(name, root=verb.audit is not None) as span:
        if verb.scope is None:
            result = known[name](*arguments)
        else:
            check_may(caller, verb.scope, everywhere=verb.everywhere)
            result = known[name](*arguments, caller)
        result = await result if isawaitable(result) else result
        if span is not None:
            tracing.note(span, outcome="ok", **_facts(verb, arguments, result))
        return result


def _facts(verb: verbs.Verb[..., Any], arguments: tuple[Any, ...], result: Any) -> dict[str, str]:
    """What a trace tells of a call: the sandbox, its environment and image."""
    facts: dict[str, str] = {}
    for name, value in zip(verb.signature.parameters, arguments, strict=False):
        if name in ("sandbox_id", "environment") and isinstance(value, str):
            facts[name] = value
        elif isinstance(value, SandboxSpec):
            facts |= {"environment": value.environment, "image": value.image}
    info = result[0] if isinstance(result, tuple) and result else result
    if isinstance(info, SandboxInfo):
        facts |= {"sandbox_id": info.id}
    return facts
