"""`Image`: what a sandbox runs on, said in Python."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakKeyDictionary

from shoal.client.arguments import environment_of
from shoal.client.cluster import Client, current
from shoal.client.dual_method import dual_method
from shoal.client.image import building, commands
from shoal.client.image.dockerfile import parse
from shoal.client.image.ignore import Ignore
from shoal.client.image.local_files import LocalFiles
from shoal.client.image.stage_copy import StageCopy, stages_in
from shoal.client.secrets import Secret, uses_of
from shoal.model import tasks, verbs
from shoal.model.builds import BuildOptions
from shoal.model.errors import InvalidRequest
from shoal.model.ids import IMAGE
from shoal.model.images import image_name
from shoal.model.options import mapping
from shoal.model.recipe import (
    SCRATCH,
    Recipe,
    Run,
    SetCommand,
    SetEntrypoint,
    SetEnv,
    SetLabels,
    SetUser,
    SetWorkdir,
    check_pairs,
    check_step,
)
from shoal.model.secrets import secret_uses
from shoal.model.validate import check_absolute, check_text

BASE = "shoal/base"
PYTHON_SOURCES = "/opt/python"
"""Where `add_local_python_source` puts packages."""

_NOT_PYTHON = ("**/__pycache__", "**/*.pyc")

Log = Callable[[str], None]


class Image:
    """A root filesystem for sandboxes: a base and what is done to it.

    Immutable: each method returns another image, and what two images have in common is built once. An image is built
    when it is first used, or by `build`. `Sandbox.create(image=…)`, pools and `shoal.map` take one.
    """

    def __init__(self, base: str, steps: Sequence[building.ClientStep] = (), secret: Secret | None = None) -> None:
        # For `base`, `from_registry` and their like.
        self._base = base
        self._steps = tuple(steps)
        self._secret = secret
        self._built: WeakKeyDictionary[Client, dict[str, str]] = WeakKeyDictionary()
        self._building: dict[tuple[asyncio.AbstractEventLoop, Client, str], asyncio.Task[Image]] = {}

    # Where it begins

    @staticmethod
    def base() -> Image:
        """`shoal/base`: the machine's Debian or Ubuntu with Python, pip, git, curl and CA certificates."""
        return Image(BASE)

    @staticmethod
    def debian_slim(python: str | None = None) -> Image:
        """`shoal/base` with this version of Python (`"3.11"`), as far as the distribution has it. None: its own."""
        if python is None:
            return Image(BASE)
        given: Any = python
        parts = given.split(".") if isinstance(given, str) else []
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise InvalidRequest(f"python: {python!r:.80} is no version; give one such as '3.11'", field="python")
        return Image(BASE, (commands.python(python),))

    @staticmethod
    def from_registry(reference: str, *, secret: Secret | None = None) -> Image:
        """An image of a registry: `python:3.12`, `ghcr.io/org/name@sha256:…`. A node that lacks it pulls it.

        `secret`: its credentials, with the keys `REGISTRY_USERNAME` and `REGISTRY_PASSWORD`. The image then belongs to
        the environment, which pulls it once; others do not get it by its reference.
        """
        check_text("reference", reference, "an image's reference, such as 'python:3.12'")
        return Image(reference, secret=secret)

    @staticmethod
    def from_dockerfile(
        path: str | os.PathLike[str],
        *,
        context: str | os.PathLike[str] | None = None,
        args: Mapping[str, str] | None = None,
        ignore: Sequence[str] | None = None,
        secrets: Mapping[str, Secret] | None = None,
        target: str | None = None,
    ) -> Image:
        """What a Dockerfile says. `path`: the file, or the directory that it is in. `context`: what COPY is relative
        to; None: the file's directory. `args`: values for its ARGs. `ignore`: patterns of files that COPY leaves out;
        None: those of `Dockerfile.dockerignore` beside the file or, where there is none, of `.dockerignore` in the
        context. `secrets`: by the ids of its `RUN --mount=type=secret`. `target`: the stage to stop at; None: the last.
        `docs/images.md` lists the instructions that are understood.

        Raises `InvalidRequest`, which names the line.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "Dockerfile"
        directory = file.parent if context is None else Path(context)
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"path: {file}: {getattr(error, 'strerror', None) or error}", field="path") from None
        if not directory.is_dir():
            raise InvalidRequest(f"context: {directory} is no directory; give one", field="context")
        own = file.with_name(f"{file.name}.dockerignore")
        read = own if own.is_file() else directory / ".dockerignore"
        rules = Ignore.read(read) if ignore is None else Ignore.of(ignore)
        uses = dict(zip(secrets or {}, secret_uses(uses_of(list((secrets or {}).values()))), strict=True))
        parsed = parse(text, directory.resolve(), mapping("args", args), rules, secrets=uses, target=target)
        return Image(parsed.base, parsed.steps)

    @staticmethod
    def from_scratch() -> Image:
        """No file at all: for a static program that `add_local_file` adds. No commands run in it."""
        return Image(SCRATCH)

    @staticmethod
    def from_id(image_id: str) -> Image:
        """An image of the cluster, by its id."""
        if not IMAGE.fullmatch(str(image_id)):
            raise InvalidRequest(
                f"image_id: {image_id!r:.80} is not an image id, which looks like 'im-…'", field="image_id"
            )
        return Image(image_id)

    @staticmethod
    def from_name(name: str) -> Image:
        """A published image, by its name: `name:tag`; `latest` where there is no tag."""
        return Image(image_name(name))

    # What is done to it

    def apt_install(self, *packages: str) -> Image:
        """Installs packages of Debian or Ubuntu."""
        return self._with("packages", commands.apt(_words("packages", packages)))

    def pip_install(
        self, *packages: str, index_url: str | None = None, extra_index_url: str | None = None, extra_options: str = ""
    ) -> Image:
        """Installs Python packages by pip, as root. `extra_options`: further options of `pip install`, as one line."""
        options = _pip_options(index_url, extra_index_url, extra_options)
        return self._with("packages", commands.pip(_words("packages", packages), options))

    def uv_pip_install(
        self, *packages: str, index_url: str | None = None, extra_index_url: str | None = None, extra_options: str = ""
    ) -> Image:
        """The same by uv, which is faster. It is installed first where the image has none."""
        options = _pip_options(index_url, extra_index_url, extra_options)
        return self._with("packages", commands.uv_pip(_words("packages", packages), options))

    def pip_install_from_requirements(
        self,
        path: str | os.PathLike[str],
        *,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        extra_options: str = "",
    ) -> Image:
        """Installs what a local requirements file lists."""
        options = _pip_options(index_url, extra_index_url, extra_options)
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"path: {path}: {getattr(error, 'strerror', None) or error}", field="path") from None
        return self._with("path", commands.pip_requirements(text, options, os.fspath(path)))

    def run_commands(
        self,
        *lines: str,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        secrets: Sequence[Secret] = (),
    ) -> Image:
        """Runs lines of the shell, each a step of its own, as RUN in a Dockerfile. `env`: variables for these lines
        only. `user`: None for the image's own; `"root"`. `secrets`: what these lines get, as variables or files; what
        they do not write is not in the image. Other values of a secret build nothing anew."""
        own = mapping("env", env)
        check_pairs("env", own)
        uses = secret_uses(uses_of(secrets))
        return self._with(
            "lines",
            *(Run((*commands.SHELL, line), own, user, secrets=uses) for line in _words("lines", lines)),
        )

    def env(self, variables: Mapping[str, str]) -> Image:
        """Sets environment variables, for the steps after it and for sandboxes."""
        return self._with("variables", SetEnv(mapping("variables", variables)))

    def workdir(self, path: str | os.PathLike[str]) -> Image:
        """Sets the directory in which processes start; made where it is missing."""
        return self._with("path", SetWorkdir(os.fspath(path)))

    def user(self, user: str) -> Image:
        """Sets who processes run as: a name, `uid` or `uid:gid`. `run_commands` after it run as that user, too."""
        return self._with("user", SetUser(user))

    def entrypoint(self, argv: Sequence[str]) -> Image:
        """Sets what comes before `cmd`; takes away the `cmd` of before."""
        return self._with("argv", SetEntrypoint(_words("argv", argv, least=0)))

    def cmd(self, argv: Sequence[str]) -> Image:
        """Sets the own command of sandboxes that are given none: `entrypoint` and then this. Such a sandbox ends with
        it."""
        return self._with("argv", SetCommand(_words("argv", argv, least=0)))

    def labels(self, labels: Mapping[str, str]) -> Image:
        """Labels it; they go where it is pushed."""
        return self._with("labels", SetLabels(mapping("labels", labels)))

    def add_local_file(
        self, local: str | os.PathLike[str], remote: str | os.PathLike[str], *, mode: int | None = None, owner: str = ""
    ) -> Image:
        """Adds a file of this machine as `remote`, or below `remote` if that ends with a slash. It is read when the
        image is built. `mode`: None for its own; `owner`: root if empty."""
        file = _local(local)
        if file.is_dir():
            raise InvalidRequest(f"local: {file} is a directory; use add_local_dir", field="local")
        target = _remote(remote)
        path = PurePosixPath(target) / file.name if target.endswith("/") else PurePosixPath(target)
        title = f"add_local_file({os.fspath(local)!r}, {target!r})"
        added = LocalFiles(((file, path.name),), str(path.parent), file.parent, Ignore(), owner, title, mode)
        return self._with("remote", added)

    def add_local_dir(
        self,
        local: str | os.PathLike[str],
        remote: str | os.PathLike[str],
        *,
        ignore: Sequence[str] = (),
        owner: str = "",
    ) -> Image:
        """Adds what is in a directory of this machine to the directory `remote`. It is read when the image is built.
        `ignore`: patterns of what to leave out, as in a `.dockerignore`: `["**/*.log", ".git"]`."""
        directory = _local(local)
        if not directory.is_dir():
            raise InvalidRequest(f"local: {directory} is no directory; use add_local_file", field="local")
        title = f"add_local_dir({os.fspath(local)!r}, {os.fspath(remote)!r})"
        added = LocalFiles(((directory, ""),), _remote(remote), directory, Ignore.of(ignore), owner, title)
        return self._with("remote", added)

    def add_local_python_source(self, *modules: str, ignore: Sequence[str] = ()) -> Image:
        """Adds Python packages or modules of this machine, by their names, so that they can be imported. They are
        found as `import` finds them, and not imported here."""
        image = self
        for module in _words("modules", modules):
            source = _module(module)
            rules = Ignore.of((*_NOT_PYTHON, *ignore))
            title = f"add_local_python_source({module!r})"
            name = source.name
            added = LocalFiles(((source, name),), PYTHON_SOURCES, source.parent, rules, "", title)
            image = image._with("modules", added)
        return image._with("modules", SetEnv({"PYTHONPATH": self._python_path()}))

    def _python_path(self) -> str:
        set_before = [step.variables.get("PYTHONPATH") for step in self._steps if isinstance(step, SetEnv)]
        before = next((value for value in reversed(set_before) if value), "")
        paths = [path for path in before.split(":") if path]
        return ":".join(paths if PYTHON_SOURCES in paths else [PYTHON_SOURCES, *paths])

    # What is done with it

    @dual_method
    async def build(
        self,
        *,
        environment: str | None = None,
        timeout: float = 1800.0,
        cpu: float | None = None,
        memory: int | None = None,
        disk: int | None = None,
        network: str = "default",
        force: bool = False,
        progress: bool | None = None,
        log: Log | None = None,
        client: Client | None = None,
    ) -> Image:
        """Builds it, or finds it built, and returns the image with its `id`: once in the cluster, however many ask.

        Each step runs in a sandbox with these `cpu` (cores), `memory` and `disk` (MiB) and `network`; None is the
        cluster's default. `timeout`: seconds for all steps. `force`: builds all steps anew. `progress`: prints the log
        to stderr; None: if that is a terminal. `log`: gets the log's text as it comes.

        Raises `ImageBuildError` (with the `step`, and the `log`'s end), `ImageNotFound` (the base), `InvalidRequest`,
        `DeadlineExceeded`, `Unavailable`.
        """
        options = BuildOptions(timeout, cpu, memory, disk, network, force)
        options.check()
        client = client or await current()
        where = await environment_of(client, environment)
        show = sys.stderr.isatty() if progress is None else progress
        write = _both(_print if show else None, log)
        base = await self._base_for(client, where)
        if not self._steps:
            return self if self._secret is None else Image(base)
        image_id = await building.build(client.transport, base, self._steps, where, options, write)
        self._built.setdefault(client, {})[where] = image_id
        return Image(image_id)

    @dual_method
    async def publish(
        self,
        name: str,
        *,
        environment: str | None = None,
        progress: bool | None = None,
        client: Client | None = None,
    ) -> Image:
        """Builds it and gives it a name, `name:tag`, which moves to it from another image of the environment.
        `Image.from_name` finds it."""
        name = image_name(name)
        client = client or await current()
        where = await environment_of(client, environment)
        built = await self.build.aio(environment=where, progress=progress, client=client)
        if built.id is None:
            raise InvalidRequest(
                f"name: {built._base} is a registry's; give an image that was built here", field="name"
            )
        await client.transport.ask(verbs.name_image, built.id, where, name)
        return built

    @dual_method
    async def push(
        self,
        reference: str,
        *,
        environment: str | None = None,
        progress: bool | None = None,
        client: Client | None = None,
    ) -> str:
        """Builds it and sends it to a registry (`registry/name:tag`), with the credentials that its node has for that.
        Returns the digest by which the registry knows it."""
        client = client or await current()
        where = await environment_of(client, environment)
        built = await self.build.aio(environment=where, progress=progress, client=client)
        pushed = await client.transport.ask(verbs.push_image, built._base, where, reference)
        return pushed.digest

    async def reference_for(self, client: Client, environment: str) -> str:
        """What the spec of a sandbox says: builds the image where it was not yet, once for each `Image` and client."""
        if not self._steps and self._secret is None:
            return self._base
        known = self._built.setdefault(client, {}).get(environment)
        if known is not None:
            return known
        key = (asyncio.get_running_loop(), client, environment)
        task = self._building.get(key)
        if task is None:  # else another create of this process builds it just now
            task = self._building[key] = tasks.shared(
                self.build.aio(environment=environment, client=client), "build image"
            )
            task.add_done_callback(lambda _: self._building.pop(key))
        return (await asyncio.shield(task))._base

    def forget(self, client: Client, environment: str) -> bool:
        """What it was built as is gone, so that the next use builds it anew. Whether it was known."""
        return self._built.get(client, {}).pop(environment, None) is not None

    # What it is

    @property
    def id(self) -> str | None:
        """`im-…`, of one that `build`, `from_id` or a snapshot gave; else None."""
        return self._base if self.reference is not None and IMAGE.fullmatch(self._base) else None

    @property
    def reference(self) -> str | None:
        """What `image` of a sandbox says for it: an id, a name, or a registry's reference. None for one that must be
        built first."""
        return None if self._steps or self._secret is not None else self._base

    def recipe(self) -> Recipe:
        """The recipe as it travels; reads the local files, for their hash."""
        stages = stages_in(self._steps)
        if any(stage.steps for stage in stages):
            raise InvalidRequest("image: it has files of other stages, which are built first; build it", field="image")
        return building.resolve(self._base, self._steps, [stage.base for stage in stages])[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash((self._base, len(self._steps)))

    def __repr__(self) -> str:
        steps = f", {len(self._steps)} steps" if self._steps else ""
        return f"<Image {self._base}{steps}>"

    @property
    def _parts(self) -> tuple[object, ...]:
        return self._base, self._steps, None if self._secret is None else self._secret._use

    async def _base_for(self, client: Client, environment: str) -> str:
        """What the recipe begins with; one that needs credentials is pulled first."""
        if self._secret is None:
            return self._base
        pulled = await client.transport.ask(verbs.pull_image, self._base, environment, self._secret._use)
        return pulled.id

    def _with(self, field: str, *steps: building.ClientStep) -> Image:
        # What can be checked is checked where it is written. `field`: the argument that said it.
        for step in steps:
            if not isinstance(step, LocalFiles | StageCopy):
                check_step(field, step)
        return Image(self._base, (*self._steps, *steps), self._secret)


def _words(field: str, words: Sequence[str], *, least: int = 1) -> tuple[str, ...]:
    if isinstance(words, str | bytes):
        raise InvalidRequest(f"{field}: it is one string; give a list of strings", field=field)
    found: tuple[Any, ...] = tuple(words)
    if len(found) < least or not all(isinstance(each, str) and each for each in found):
        wrong = next((each for each in found if not isinstance(each, str) or not each), None)
        told = "it is empty" if len(found) < least else f"{wrong!r:.80} is no string, or an empty one"
        hint = (
            f"; give each as an argument of its own (*{field})" if isinstance(wrong, list | tuple) else "; give strings"
        )
        raise InvalidRequest(f"{field}: {told}{hint}", field=field)
    return found


def _pip_options(index_url: str | None, extra_index_url: str | None, extra_options: str) -> list[str]:
    options = [] if index_url is None else ["--index-url", index_url]
    options += [] if extra_index_url is None else ["--extra-index-url", extra_index_url]
    return [*options, *extra_options.split()]


def _local(path: str | os.PathLike[str]) -> Path:
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise InvalidRequest(f"local: {found} does not exist; give a path of this machine", field="local")
    return found


def _remote(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    check_absolute("remote", text)
    return text


def _module(name: str) -> Path:
    """A package's directory, or a module's file."""
    spec = None
    where: list[str] | None = None
    for part in name.split("."):
        spec = PathFinder.find_spec(part, where)
        if spec is None:
            raise InvalidRequest(f"modules: {name!r:.80} is not found here as a Python module", field="modules")
        where = [*spec.submodule_search_locations] if spec.submodule_search_locations is not None else []
    if where:
        return Path(where[0]).absolute()
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InvalidRequest(f"modules: {name!r:.80} is no Python source", field="modules")
    return Path(spec.origin).absolute()


def _print(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _both(first: Log | None, second: Log | None) -> Log | None:
    if first is None or second is None:
        return first or second

    def write(text: str) -> None:
        first(text)
        second(text)

    return write
