"""Shoal: an elastic cluster of sandboxes for untrusted code, on machines of your own.

    import shoal

    with shoal.Sandbox.create(image="shoal/base") as sandbox:
        result = sandbox.run("python3 -c 'print(6 * 7)'")
        print(result.stdout)

Every call blocks, and has an `.aio` form: `await shoal.Sandbox.create.aio(...)`. Names load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.client.buckets import BucketMount
    from shoal.client.checkpoint import Checkpoint
    from shoal.client.cluster import Client, connect
    from shoal.client.events import Events
    from shoal.client.files import FileSystem, SandboxFile, Transfer, Watch
    from shoal.client.image.image import Image
    from shoal.client.pools import Pool
    from shoal.client.process import Input, Output, Process, ProcessInfo, Result
    from shoal.client.rollouts.map import map
    from shoal.client.rollouts.outcome import Outcome, Outcomes
    from shoal.client.rollouts.reward import Reward, reward
    from shoal.client.sandbox import Sandbox
    from shoal.client.secrets import Secret
    from shoal.client.tunnels import Forward
    from shoal.client.volume.volume import MountedVolume, Volume
    from shoal.model.access import AuditEntry, Environment, Quota, SandboxEvent, Scope, TokenInfo, Tunnel
    from shoal.model.errors import (
        AlreadyExists,
        BuildNotFound,
        CommandFailed,
        CommandNotExecutable,
        CommandNotFound,
        DeadlineExceeded,
        EnvironmentNotFound,
        FailedPrecondition,
        ImageBuildError,
        ImageNotFound,
        Internal,
        InvalidRequest,
        IsADirectory,
        NoCapacity,
        NodeNotFound,
        NoScore,
        NotADirectory,
        NotFound,
        PathNotFound,
        PermissionDenied,
        PoolNotFound,
        ProcessNotFound,
        QuotaExceeded,
        RelativePath,
        RolloutNotFound,
        SandboxEnded,
        SandboxNotFound,
        SecretNotFound,
        ShoalError,
        TokenNotFound,
        TunnelNotFound,
        Unauthenticated,
        Unavailable,
        UserNotFound,
        VolumeNotFound,
    )
    from shoal.model.info import NodeInfo, SandboxInfo
    from shoal.model.pools import PoolInfo, PoolUse
    from shoal.model.secrets import SecretInfo
    from shoal.model.states import Reason, State
    from shoal.model.volumes import VolumeInfo, VolumesUse, VolumeUse
    from shoal.wire.records import Entry, WatchEvent

_HOMES = {
    "shoal.client.buckets": "BucketMount",
    "shoal.client.events": "Events",
    "shoal.client.cluster": "Client connect",
    "shoal.client.files": "FileSystem SandboxFile Transfer Watch",
    "shoal.model.access": "AuditEntry Environment Quota SandboxEvent Scope TokenInfo Tunnel",
    "shoal.model.errors": "AlreadyExists BuildNotFound CommandFailed CommandNotExecutable CommandNotFound "
    "DeadlineExceeded EnvironmentNotFound FailedPrecondition ImageBuildError ImageNotFound Internal InvalidRequest "
    "IsADirectory NoCapacity NoScore NodeNotFound NotADirectory NotFound PathNotFound PermissionDenied PoolNotFound "
    "ProcessNotFound QuotaExceeded RelativePath RolloutNotFound SandboxEnded SandboxNotFound SecretNotFound "
    "ShoalError TokenNotFound TunnelNotFound Unauthenticated Unavailable UserNotFound VolumeNotFound",
    "shoal.model.info": "NodeInfo SandboxInfo",
    "shoal.model.pools": "PoolInfo PoolUse",
    "shoal.model.secrets": "SecretInfo",
    "shoal.model.states": "Reason State",
    "shoal.client.checkpoint": "Checkpoint",
    "shoal.client.image.image": "Image",
    "shoal.client.pools": "Pool",
    "shoal.client.process": "Input Output Process ProcessInfo Result",
    "shoal.client.rollouts.map": "map",
    "shoal.client.rollouts.outcome": "Outcome Outcomes",
    "shoal.client.rollouts.reward": "Reward reward",
    "shoal.client.sandbox": "Sandbox",
    "shoal.client.secrets": "Secret",
    "shoal.client.tunnels": "Forward",
    "shoal.client.volume.volume": "MountedVolume Volume",
    "shoal.model.volumes": "VolumeInfo VolumeUse VolumesUse",
    "shoal.wire.records": "Entry WatchEvent",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = [
    "AlreadyExists",
    "AuditEntry",
    "BucketMount",
    "BuildNotFound",
    "Checkpoint",
    "Client",
    "CommandFailed",
    "CommandNotExecutable",
    "CommandNotFound",
    "DeadlineExceeded",
    "Entry",
    "Environment",
    "EnvironmentNotFound",
    "Events",
    "FailedPrecondition",
    "FileSystem",
    "Forward",
    "Image",
    "ImageBuildError",
    "ImageNotFound",
    "Input",
    "Internal",
    "InvalidRequest",
    "IsADirectory",
    "MountedVolume",
    "NoCapacity",
    "NoScore",
    "NodeInfo",
    "NodeNotFound",
    "NotADirectory",
    "NotFound",
    "Outcome",
    "Outcomes",
    "Output",
    "PathNotFound",
    "PermissionDenied",
    "Pool",
    "PoolInfo",
    "PoolNotFound",
    "PoolUse",
    "Process",
    "ProcessInfo",
    "ProcessNotFound",
    "Quota",
    "QuotaExceeded",
    "Reason",
    "RelativePath",
    "Result",
    "Reward",
    "RolloutNotFound",
    "Sandbox",
    "SandboxEnded",
    "SandboxEvent",
    "SandboxFile",
    "SandboxInfo",
    "SandboxNotFound",
    "Scope",
    "Secret",
    "SecretInfo",
    "SecretNotFound",
    "ShoalError",
    "State",
    "TokenInfo",
    "TokenNotFound",
    "Transfer",
    "Tunnel",
    "TunnelNotFound",
    "Unauthenticated",
    "Unavailable",
    "UserNotFound",
    "Volume",
    "VolumeInfo",
    "VolumeNotFound",
    "VolumeUse",
    "VolumesUse",
    "Watch",
    "WatchEvent",
    "connect",
    "map",
    "reward",
]


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
