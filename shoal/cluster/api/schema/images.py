"""The JSON of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path
from pydantic import BeforeValidator, Field, WithJsonSchema

from shoal.cluster.api.schema.control import MAX_BATCH, MAX_SECONDS, Deadline, Sandbox, Sent, Told
from shoal.model import field_types
from shoal.model.field_types import Name
from shoal.model.images import MAX_TTL, ImageKind
from shoal.model.secrets import SecretUse, secret_use

NameText = Annotated[str, Field(min_length=1, max_length=255, examples=["agent:v1"])]
ImagePath = Annotated[
    str, Path(description="Its id, or its name.", min_length=1, max_length=255, examples=["im-2fq7c3j5kx6n4a7b"])
]


MountPath = Annotated[str, Field(min_length=1, max_length=4095, examples=["/srv/data"])]


def _secret(given: Any) -> SecretUse:
    """By a function of its own: what pydantic says of a wrong value shows it."""
    return secret_use("secret", given)


class Snapshot(Sent):
    """An image to take of a sandbox."""

    name: NameText | None = None
    """`name:tag`, unique in its environment: another image that has it loses it"""
    ttl: Annotated[float, Field(gt=0, le=MAX_TTL)] | None = None
    """Seconds after which it goes; without it, one without a name goes once it is not used for long"""
    key: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The same key gives the same image"""
    path: MountPath | None = None
    """Of this directory alone, which is the image's root; without what is mounted below it"""


class ImageMount(Sent):
    """An image to mount into a sandbox."""

    image: Annotated[str, Field(min_length=1, max_length=512, examples=["im-2fq7c3j5kx6n4a7b"])]
    """Its id, its name, or a reference"""
    path: MountPath
    """Where: an absolute path, at which nothing else is mounted; made where it is missing"""


class Checkpoint(Sent):
    """An image to take of a sandbox with its memory."""

    ttl: Annotated[float, Field(gt=0, le=MAX_TTL)] | None = None
    """Seconds after which it goes; without it, it goes once it is not used for long"""
    key: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The same key gives the same image"""


class Fork(Sent):
    """Sandboxes that begin with the files of another one."""

    count: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1
    """How many: all are made, or none"""
    deadline: Deadline = 300.0
    """Seconds for all of it"""
    key: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    """The same key gives the same sandboxes; they have the idempotency keys `<key>:<number>`, from 0"""
    memory: bool = False
    """Each goes on with the processes and the memory of this one, too; for a sandbox in gVisor"""


class ImagePull(Sent):
    """An image to pull from a registry."""

    reference: Annotated[str, Field(min_length=1, max_length=512, examples=["ghcr.io/org/name:1"])]
    secret: Annotated[Any, BeforeValidator(_secret), WithJsonSchema(field_types.SECRET_SCHEMA)]
    """Its credentials: a stored secret or values, with the keys `REGISTRY_USERNAME` and `REGISTRY_PASSWORD`"""
    environment: Name | None = None
    """Whose image it is then; by default the token's, or `main` for a token of all"""


class ImageName(Sent):
    """A name for an image."""

    environment: Name | None = None
    """Where the name in the path is looked up; by default the token's, or `main` for a token of all"""
    name: NameText | None
    """`name:tag`; null: none any more"""


class Collection(Sent):
    """Which images to delete."""

    environment: Name | None = None
    """By default the token's, or `main` for a token of all"""
    unused_for: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 0.0
    """Seconds for which no sandbox was created from it"""
    dry_run: bool = False
    """Only tell which"""


class ImageConfig(Told):
    """The defaults for an image's processes."""

    env: dict[str, str]
    user: str
    workdir: str
    entrypoint: Sequence[str]
    command: Sequence[str]
    labels: dict[str, str]


class Image(Told):
    """An image of the cluster. Times in unix seconds."""

    id: str
    environment: str
    kind: ImageKind
    """Taken of a sandbox, a step of a build, or loaded from an archive"""
    created_at: float
    state: str
    """`ready`"""
    digest: str
    """Names its content for good"""
    name: str | None
    """`name:tag`"""
    parent: str | None
    """What its sandbox was started from"""
    size: int
    """Bytes, with the layers that it shares with others"""
    config: ImageConfig
    expires_at: float | None
    """When it goes by itself"""
    cache_key: str | None
    """Of the step of a recipe"""
    machines: Sequence[str]
    """The machines that have it"""
    used_at: float | None
    """When a sandbox was last created from it"""
    sandbox_id: str | None
    """Whose files it has"""
    in_use: int
    """Living sandboxes and pools that need it"""
    stored: bool
    """Whether every machine can have it, from the object storage; else only `machines` start sandboxes from it"""


class ImagePage(Told):
    """Images, newest first."""

    images: Sequence[Image]
    next_cursor: str | None
    """The `cursor` for the next page; null: this is the last"""


class Forked(Told):
    """The new sandboxes."""

    sandboxes: Sequence[Sandbox]


class Images(Told):
    """Images."""

    images: Sequence[Image]
