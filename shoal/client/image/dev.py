"""`shoal/dev`: an image with what coding agents call, built from `shoal/base` where it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.client.cluster import Client
from shoal.client.image.building import build
from shoal.client.image.image import Image
from shoal.model.builds import BuildOptions

if TYPE_CHECKING:
    from shoal.transport.contract import Transport

DEV = "shoal/dev"
"""What a spec's `image` says for it."""

_PACKAGES = (
    "bash-completion",
    "build-essential",
    "file",
    "jq",
    "nano",
    "nodejs",
    "npm",
    "openssh-client",
    "patch",
    "pkg-config",
    "python3-dev",
    "ripgrep",
    "rsync",
    "tmux",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
    "zip",
)


def dev_image() -> Image:
    """The recipe: the same for all, so that it is built once."""
    return Image.base().apt_install(*_PACKAGES)


async def dev_reference(transport: Transport, environment: str) -> str:
    """What it was built as; builds it where it was not yet."""
    recipe = dev_image().recipe()
    return await build(transport, recipe.base, recipe.steps, environment, BuildOptions(), None)


async def reference_of(image: object, client: Client, environment: str) -> object:
    """What a spec says for the `image` that a caller gave; an `Image` is built first."""
    if image == DEV:
        return await dev_reference(client.transport, environment)
    return await image.reference_for(client, environment) if isinstance(image, Image) else image
