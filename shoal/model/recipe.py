"""A recipe: what an image is made of, as it travels, and the keys by which the cluster finds again what it has built.

A recipe is a base (what `image` of a sandbox may be) and steps in order. Some steps change files, and make
a layer each: `Run`, `Add` and `Copy`. The others say what sandboxes of the image get by default. In JSON:

    {"base": "shoal/base", "steps": [{"step": "run", "argv": ["/bin/sh", "-c", "pip install six"]}, …]}

A step's key is a hash of the base's digest and of all steps up to it. Two recipes that begin alike share what they have
in common. What is only told to people (`title`) is not part of it.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar

from shoal.model.errors import InvalidRequest
from shoal.model.secrets import SecretUse, check_uses, secret_uses
from shoal.model.validate import check_absolute, check_command, check_environment_variables, check_text, text_size

SCRATCH = "shoal/scratch"
"""The base without any file, which every node has."""

MOST_STEPS = 200
MOST_LAYERS = 100
"""Overlay filesystems stack up to 127 layers, of which the base has some."""

MOST_FILES_BYTES = 512 << 20
"""Bytes of the archive of one `Add`."""

MODE = re.compile(r"(?:[0-7]{3,4})?")
DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = "1"
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)\})")


@dataclass(frozen=True, slots=True)
class Run:
    """Runs a command. `env`: variables of this command only; `user`: None for the image's own (root, if it has
    none); `secrets`: what it gets, and nothing after it."""

    kind: ClassVar[str] = "run"
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    title: str = ""
    secrets: tuple[SecretUse, ...] = ()


@dataclass(frozen=True, slots=True)
class Add:
    """Unpacks local files below `path`, replacing those of the same names. `digest`, `size`: of their tar archive;
    `owner`: who gets the `entries` at its top, root if empty."""

    kind: ClassVar[str] = "add"
    digest: str
    size: int
    path: str
    owner: str = ""
    entries: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Copy:
    """Copies files of another image, which `image` of a sandbox may be. `sources`: absolute paths there, whose last
    part may have `*` and `?`; links at such a path are followed. What is in a directory comes below `path`; a file
    becomes `path`, or (`into`, or several) comes below it. `owner`, `mode` (octal): of all of it; empty for root, and
    for its own."""

    kind: ClassVar[str] = "copy"
    image: str
    sources: tuple[str, ...]
    path: str
    into: bool = False
    owner: str = ""
    mode: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class SetEnv:
    """Sets variables. `expand`: `${NAME}` in a value stands for the variable's value before, `$$` for a dollar sign."""

    kind: ClassVar[str] = "env"
    variables: Mapping[str, str]
    expand: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class SetWorkdir:
    """Sets the directory in which processes start."""

    kind: ClassVar[str] = "workdir"
    path: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class SetUser:
    """Sets who processes run as."""

    kind: ClassVar[str] = "user"
    user: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class SetEntrypoint:
    """Sets what goes before every sandbox's own command."""

    kind: ClassVar[str] = "entrypoint"
    argv: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class SetCommand:
    """Sets the own command of a sandbox that is given none."""

    kind: ClassVar[str] = "cmd"
    argv: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class SetLabels:
    """Labels the image."""

    kind: ClassVar[str] = "labels"
    labels: Mapping[str, str]
    title: str = ""


Step = Run | Add | Copy | SetEnv | SetWorkdir | SetUser | SetEntrypoint | SetCommand | SetLabels
KINDS: Mapping[str, type[Step]] = {
    each.kind: each for each in (Run, Add, Copy, SetEnv, SetWorkdir, SetUser, SetEntrypoint, SetCommand, SetLabels)
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A base and what is done to it."""

    base: str
    steps: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"base": self.base, "steps": [step_to_dict(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """The inverse of `to_dict`, checked; `InvalidRequest` names the step."""
        if not isinstance(data, Mapping) or not isinstance(data.get("steps", []), list | tuple):
            raise InvalidRequest("recipe: it is no object with `base` and `steps`; give one", field="recipe")
        steps = data.get("steps", [])
        _check_count(len(steps))
        recipe = cls(data.get("base", ""), tuple(_step_of(f"steps[{at}]", each) for at, each in enumerate(steps)))
        check_recipe(recipe)
        return recipe


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """What sandboxes of a built image get where their creators do not say. `user`, `workdir`: empty for the base's
    own."""

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def is_layer(step: Step) -> bool:
    """Whether the step changes files."""
    return isinstance(step, Run | Add | Copy)


def title_of(step: Step) -> str:
    """The step as text, for people: at most 200 characters."""
    if step.title:
        return step.title[:200]
    match step:
        case Run():
            text = step.argv[-1] if step.argv[:2] == ("/bin/sh", "-c") else " ".join(step.argv)
        case Add():
            text = f"add files to {step.path}"
        case Copy():
            text = f"copy {' '.join(step.sources)} of {step.image} to {step.path}"
        case SetEnv():
            text = f"env {' '.join(step.variables)}"
        case SetWorkdir():
            text = f"workdir {step.path}"
        case SetUser():
            text = f"user {step.user}"
        case SetLabels():
            text = f"labels {' '.join(step.labels)}"
        case SetEntrypoint() | SetCommand():
            text = f"{step.kind} {' '.join(step.argv)}"
    first, newline, _ = text.strip().partition("\n")
    return (first if not newline else f"{first} …")[:200]


# Keys


def keys_of(base_digest: str, steps: Sequence[Step]) -> tuple[str, ...]:
    """The key of each step: of all that was done by its end."""
    key = hashlib.sha256(f"shoal recipe {_VERSION}\n{base_digest}".encode()).hexdigest()
    keys = []
    for step in steps:
        if isinstance(step, Run) and step.secrets:  # by name and keys: their values are no part of what is built
            step = replace(step, secrets=tuple(use.told() for use in step.secrets))
        hashed = {name: value for name, value in step_to_dict(step).items() if name not in ("title", "size")}
        key = hashlib.sha256(f"{key}\n{json.dumps(hashed, sort_keys=True)}".encode()).hexdigest()
        keys.append(key)
    return tuple(keys)


# Defaults


def changed(defaults: ImageDefaults, step: Step, base_env: Mapping[str, str]) -> ImageDefaults:
    """The defaults after a step. `base_env`: the variables of the base's own, for what a step refers to."""
    match step:
        case SetEnv():
            before = {**base_env, **defaults.env}
            new = {name: _expanded(value, before) if step.expand else value for name, value in step.variables.items()}
            return replace(defaults, env={**defaults.env, **new})
        case SetWorkdir():
            return replace(defaults, workdir=step.path)
        case SetUser():
            return replace(defaults, user=step.user)
        case SetEntrypoint():
            return replace(defaults, entrypoint=step.argv, command=())  # a command belongs to its entrypoint
        case SetCommand():
            return replace(defaults, command=step.argv)
        case SetLabels():
            return replace(defaults, labels={**defaults.labels, **step.labels})
        case _:
            return defaults


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: "$" if found[1] is None else variables.get(found[1], ""), text)


# JSON


def step_to_dict(step: Step) -> dict[str, Any]:
    """JSON-ready; what has its default is left out."""
    data: dict[str, Any] = {"step": step.kind}
    for each in fields(step):
        value = getattr(step, each.name)
        if each.default is not MISSING and value == each.default:
            continue
        if each.name == "secrets":
            value = [use.to_dict() for use in value]
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            if not value and each.default_factory is not MISSING:
                continue
            value = dict(value)
        data[each.name] = value
    return data


def _step_of(where: str, data: Any) -> Step:
    kind = KINDS.get(str(data.get("step"))) if isinstance(data, Mapping) else None
    if kind is None:
        raise InvalidRequest(f"{where}: it is none of the steps {', '.join(KINDS)}; give its `step`", field=where)
    known = {each.name for each in fields(kind)}
    given = {str(name): value for name, value in data.items() if name != "step"}
    if unknown := given.keys() - known:
        name = min(unknown)
        raise InvalidRequest(f"{where}: a step {kind.kind!r} has no {name[:80]!r}; remove it", field=where)
    if "secrets" in given:
        given["secrets"] = secret_uses(given["secrets"], where)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    try:
        return kind(**given)
    except TypeError:
        needed = ", ".join(e.name for e in fields(kind) if e.default is MISSING and e.default_factory is MISSING)
        raise InvalidRequest(f"{where}: a step {kind.kind!r} needs {needed}", field=where) from None


# Checks


def check_recipe(recipe: Recipe) -> None:
    """Raises `InvalidRequest` for the first thing wrong; its field names the step: `steps[3]`, counted from 0."""
    check_text("base", recipe.base, "a reference such as 'shoal/base'")
    if len(recipe.base) > 512:
        raise InvalidRequest("base: it is longer than 512 characters; give an image's reference", field="base")
    _check_count(len(recipe.steps))
    layers = sum(map(is_layer, recipe.steps))
    if layers > MOST_LAYERS:
        raise InvalidRequest(
            f"steps: {layers} of them change files, more than {MOST_LAYERS}; put several commands into one step",
            field="steps",
        )
    for at, step in enumerate(recipe.steps):
        check_step(f"steps[{at}]", step)


def _check_count(count: int) -> None:
    if count > MOST_STEPS:
        raise InvalidRequest(f"steps: {count} are too many; give at most {MOST_STEPS}", field="steps")


def check_step(where: str, step: Step) -> None:
    """Raises `InvalidRequest` for the first thing wrong; its field is `where`."""
    text_size(where, step.title, "its title")
    match step:
        case Run():
            _check_words(where, step.argv, least=1)
            check_pairs(where, step.env)
            check_environment_variables(where, step.env)
            if step.user is not None:
                _check_short(where, step.user, "a user")
            check_uses(where, step.secrets)
        case Add():
            _check_add(where, step)
        case Copy():
            _check_copy(where, step)
        case SetEnv():
            check_pairs(where, step.variables)
            check_environment_variables(where, step.variables)
            _check_variable_names(where, step.variables)
            if not isinstance(step.expand, bool):
                raise InvalidRequest(f"{where}: `expand` is neither true nor false", field=where)
        case SetWorkdir():
            _check_path(where, step.path)
        case SetUser():
            _check_short(where, step.user, "a user: a name, `uid` or `uid:gid`")
        case SetEntrypoint() | SetCommand():
            _check_words(where, step.argv, least=0)
        case SetLabels():
            check_pairs(where, step.labels)
            check_environment_variables(where, step.labels)


def _check_add(where: str, step: Add) -> None:
    digest: Any = step.digest
    size: Any = step.size
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise InvalidRequest(f"{where}: `digest` is no SHA-256 in 64 hexadecimal digits", field=where)
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidRequest(f"{where}: `size` is no number of bytes", field=where)
    if step.size > MOST_FILES_BYTES:
        raise InvalidRequest(
            f"{where}: the files have {step.size:,} bytes, more than {MOST_FILES_BYTES:,}; ignore what is not needed, "
            "or fetch it in a command",
            field=where,
        )
    _check_path(where, step.path)
    if step.owner:
        _check_short(where, step.owner, "an owner")
        _check_words(where, step.entries, least=0)
        if any("/" in each or each in ("", ".", "..") for each in step.entries):
            raise InvalidRequest(f"{where}: `entries` are names without '/'", field=where)


def _check_copy(where: str, step: Copy) -> None:
    _check_short(where, step.image, "an image")
    _check_words(where, step.sources, least=1)
    for source in step.sources:
        _check_path(where, source)
        if any(sign in posixpath.dirname(source) for sign in "*?["):
            raise InvalidRequest(f"{where}: patterns are understood in the last part of a source only", field=where)
    _check_path(where, step.path)
    into: Any = step.into
    if not isinstance(into, bool):
        raise InvalidRequest(f"{where}: `into` is neither true nor false", field=where)
    if step.owner:
        _check_short(where, step.owner, "an owner")
    mode: Any = step.mode
    if not isinstance(mode, str) or not MODE.fullmatch(mode):
        raise InvalidRequest(f"{where}: {step.mode!r:.80} is no octal mode; write one, such as 755", field=where)


def _check_words(where: str, words: Any, *, least: int) -> None:
    if not isinstance(words, tuple) or len(words) < least:
        raise InvalidRequest(f"{where}: {words!r:.80} is no list of words; give one", field=where)
    check_command(where, words)


def check_pairs(where: str, pairs: Any) -> None:
    """Names and values are strings."""
    if not isinstance(pairs, Mapping):
        raise InvalidRequest(f"{where}: {pairs!r:.80} is no mapping of strings; give one", field=where)
    for name, value in pairs.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidRequest(f"{where}: {name!r:.80} is {value!r:.80}; names and values are strings", field=where)


def _check_variable_names(where: str, names: Iterable[str]) -> None:
    """No shell and no Dockerfile can name a variable with a space."""
    for name in names:
        if not name.isprintable() or " " in name:
            raise InvalidRequest(
                f"{where}: {name!r:.80} is no name of a variable: it holds a space or a control character; leave that "
                "out",
                field=where,
            )


def _check_path(where: str, path: Any) -> None:
    check_text(where, path, "an absolute path")
    check_absolute(where, path)
    if len(path) > 4096:
        raise InvalidRequest(f"{where}: the path is longer than 4096 characters", field=where)


def _check_short(where: str, value: Any, what: str) -> None:
    check_text(where, value, what)
    if len(value) > 256:
        raise InvalidRequest(f"{where}: {value!r:.80} is longer than 256 characters; give {what}", field=where)
