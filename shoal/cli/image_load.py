"""`shoal image load`: images out of files, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import console, session, settings
from shoal.cli.options import Json


def load(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An archive of `docker save`, a directory in the OCI layout, or docker:NAME of this machine's Docker.",
            show_default=False,
        ),
    ],
    reference: Annotated[str, typer.Argument(metavar="NAME", help="What to call it here.", show_default=False)],
    root: Annotated[bool, typer.Option("--root", help="SOURCE is a tar of a root filesystem instead.")] = False,
    json: Json = False,
) -> None:
    """Load an image onto this machine, and print its digest.

    The machine is a node of the cluster. Sandboxes here name it as they would name one in a registry. Other machines do
    not have it: load it there, too, or push it to a registry.

    \b
    Examples:
      shoal image load app.tar app:1
      shoal image load docker:app:latest app:1
      shoal image load --root rootfs.tar.zst minimal:1
    """
    session.check_here("image load")
    from shoal.cluster.local import load_image

    digest = load_image.load(settings.load(), source, reference, root=root, report=console.steps)
    if json:
        console.print_json({"image": reference, "digest": digest})
    else:
        typer.echo(digest)
