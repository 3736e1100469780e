"""`shoal image build`: images from Python files and Dockerfiles."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import console
from shoal.cli.options import EnvironmentName, Json, mebibytes, pairs, seconds
from shoal.cli.session import with_cluster
from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.image.image import Image

_USUAL = ("image", "IMAGE")
"""The names that are looked for in a Python file."""


def build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="FILE.py or FILE.py:NAME of an Image in it; a Dockerfile, or the directory that it is in.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", "-t", metavar="NAME[:TAG]", help="Publish it under this name.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="The Dockerfile; SOURCE is its context then.")
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="NAME=VALUE", help="A value for an ARG of the Dockerfile."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="ID=NAME", help="The stored secret for the Dockerfile's mounts with that id."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="STAGE", help="The Dockerfile's stage to stop at.")
    ] = None,
    environment: EnvironmentName = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="The most that all steps may take (90s, 15m).")] = "30m",
    cpu: Annotated[
        float | None, typer.Option(metavar="CORES", help="Cores of each step; default: a sandbox's.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="MIB", help="Memory of each step (512, 2g); default: a sandbox's.")
    ] = None,
    disk: Annotated[str | None, typer.Option(metavar="MIB", help="Most that a step may write (512, 2g).")] = None,
    network: Annotated[str, typer.Option(metavar="default|none", help="What steps may reach.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Use nothing that was built before.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the log.")] = False,
    json: Json = False,
) -> None:
    """Build an image in the cluster, and print its id.

    What was built before is not built again.

    \b
    Examples:
      shoal image build image.py                  an Image called `image` in it
      shoal image build images.py:tests -t tests:latest
      shoal image build .                         the Dockerfile here
      shoal image build -f docker/Dockerfile --build-arg VERSION=3 --target tests .
      shoal image build --secret pip=tokens .     RUN --mount=type=secret,id=pip gets the key `pip` of it
      shoal run $(shoal image build .) pytest
    """
    said = {"args": pairs("build-arg", arg), "secrets": pairs("secret", secret), "target": target}
    made = _image(source, file, {name: value for name, value in said.items() if value})
    options: dict[str, Any] = {
        "environment": environment,
        "timeout": seconds("timeout", timeout),
        "cpu": cpu,
        "memory": _one("memory", memory),
        "disk": _one("disk", disk),
        "network": network,
        "force": force,
        "progress": False,
        "log": None if quiet else _show,
    }

    async def body(client: Client) -> str | None:
        built = await made.build.aio(client=client, **options)
        if name is not None:
            await built.publish.aio(name, environment=environment, client=client)
        return built.reference

    image_id = with_cluster(body)
    if json:
        console.print_json({"id": image_id, "name": name})
    else:
        console.out().print(image_id)


def push(
    name: Annotated[
        str, typer.Argument(metavar="IMAGE", help="Its id (im-…) or its name (name:tag).", show_default=False)
    ],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="registry/name:tag.", show_default=False)],
    environment: EnvironmentName = None,
) -> None:
    """Send an image to a registry.

    A node that has it sends it, with the credentials that it has for that.

    \b
    Examples:
      shoal image push im-4fd2mzq7c3wnk5xe registry.example.org/team/tests:1
      shoal image push tests:latest registry.example.org/team/tests:latest
    """

    async def body(client: Client) -> str:
        from shoal.model import verbs

        where = environment or await client.transport.default_environment()
        return (await client.transport.ask(verbs.push_image, name, where, reference)).digest

    console.out().print(with_cluster(body))


def image_of(text: str) -> str | Image:
    """What an IMAGE argument names: an Image in a Python file, as `shoal image build` takes it, or else a reference."""
    path = text.rpartition(":")[0] if ".py:" in text else text
    return _image(text, None, {}) if path.endswith(".py") and Path(path).is_file() else text


def _image(source: str, file: str | None, said: dict[str, Any]) -> Image:
    """`said`: what is only of a Dockerfile."""
    from shoal.client.image.image import Image
    from shoal.client.secrets import Secret

    path, colon, name = source.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, name = source, ""
    if not path.endswith(".py"):
        named = {key: Secret.from_name(name) for key, name in said.pop("secrets", {}).items()}
        context = None if file is None else path
        return Image.from_dockerfile(path if file is None else file, context=context, secrets=named, **said)
    if file is not None or said:
        raise InvalidRequest(
            "--file: only a Dockerfile has it, arguments, secrets and stages; leave them out", field="file"
        )
    if not Path(path).is_file():
        raise InvalidRequest(f"SOURCE: {path} is no file; give FILE.py, FILE.py:NAME or a directory", field="source")
    sys.path.insert(0, str(Path(path).resolve().parent))
    found = runpy.run_path(path, run_name="__shoal__")
    names = (name,) if name else _USUAL
    for each in names:
        if isinstance(found.get(each), Image):
            image_found: Image = found[each]
            return image_found
    others = [each for each, value in found.items() if isinstance(value, Image)]
    if not name and len(others) == 1:
        only: Image = found[others[0]]
        return only
    hint = f"it has {', '.join(others)}" if others else "it has none"
    raise InvalidRequest(f"SOURCE: {path} has no Image called {' or '.join(names)}; {hint}", field="source")


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _one(option: str, text: str | None) -> int | None:
    size = mebibytes(option, text)
    if isinstance(size, tuple):
        raise InvalidRequest(f"--{option}: {text!r} is not one size", field=option)
    return size
