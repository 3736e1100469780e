"""A Dockerfile as a recipe.

Understood: FROM, several stages too, RUN with secret mounts, COPY, of other stages and images too, ADD (local files),
ENV, ARG, WORKDIR, USER, ENTRYPOINT, CMD, LABEL, SHELL, and here-documents in RUN. EXPOSE, VOLUME, HEALTHCHECK,
STOPSIGNAL and MAINTAINER are about something else than files and defaults, and are passed over, as are cache mounts.
All else is refused, with its line: bind, tmpfs and ssh mounts, ONBUILD, URLs and archives in ADD.
"""

from __future__ import annotations

import glob
import posixpath
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path

from shoal.client.image import words
from shoal.client.image.ignore import Ignore
from shoal.client.image.instructions import (
    HEREDOC,
    Instruction,
    escape_of,
    flags_of,
    instructions,
    json_words,
    title_of,
    wrong,
)
from shoal.client.image.local_files import LocalFiles
from shoal.client.image.stage_copy import StageCopy
from shoal.model.errors import InvalidRequest
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
    Step,
    check_recipe,
)
from shoal.model.secrets import SecretUse, check_use

MOST_BYTES = 1 << 20

_PASSED_OVER = frozenset({"EXPOSE", "VOLUME", "HEALTHCHECK", "STOPSIGNAL", "MAINTAINER"})
_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a Dockerfile says: the base, and the steps."""

    base: str
    steps: tuple[Step | LocalFiles | StageCopy, ...]


def parse(
    text: str,
    context: Path,
    args: Mapping[str, str],
    ignore: Ignore,
    *,
    secrets: Mapping[str, SecretUse] | None = None,
    target: str | None = None,
) -> Parsed:
    """The recipe of a Dockerfile. `context`: the directory that COPY and ADD are relative to; `args`: values for its
    ARGs; `secrets`: by the ids of its mounts; `target`: the stage to stop at, None for the last. Raises
    `InvalidRequest` (field `dockerfile`, and its `line`)."""
    if len(text) > MOST_BYTES:
        raise InvalidRequest(f"dockerfile: it has more than {MOST_BYTES:,} characters", field="dockerfile")
    escape = escape_of(text)
    file = _File(context, dict(args), ignore, escape, dict(secrets or {}))
    stage = _Stage(file)
    for instruction in instructions(text, escape):
        if instruction.name == "FROM" and stage.base:
            if target is not None and stage.is_called(target):
                break
            stage = _Stage(file)
        try:
            stage.take(instruction)
        except words.Malformed as error:
            raise wrong(instruction, str(error)) from None
    if target is not None and not stage.is_called(target):
        raise InvalidRequest(f"target: the Dockerfile has no stage {target!r:.80}; name one of its own", field="target")
    if target is None:
        _check_used("args", "ARG", args.keys() - file.declared)
        _check_used("secrets", "RUN --mount=type=secret with id", file.secrets.keys() - file.mounted)
    return stage.parsed()


def _check_used(field: str, what: str, unknown: AbstractSet[str]) -> None:
    if unknown:
        raise InvalidRequest(f"{field}: the Dockerfile has no {what} {min(unknown)}; leave it out", field=field)


@dataclass(slots=True)
class _File:
    """What all stages share. `declared`: the names of ARGs; `mounted`: the ids of secrets; `first_args`: the ARGs
    before the first FROM."""

    context: Path
    given: Mapping[str, str]
    ignore: Ignore
    escape: str
    secrets: Mapping[str, SecretUse]
    declared: set[str] = field(default_factory=set)
    mounted: set[str] = field(default_factory=set)
    first_args: dict[str, str] = field(default_factory=dict)
    stages: list[_Stage] = field(default_factory=list)

    def stage(self, name: str) -> _Stage | None:
        """An earlier one, by its name or number."""
        return next((each for each in reversed(self.stages) if each.is_called(name)), None)


@dataclass(slots=True)
class _Stage:
    """A stage, as far as it was read."""

    file: _File
    base: str = ""
    _names: tuple[str, ...] = ()
    _steps: list[Step | LocalFiles | StageCopy] = field(default_factory=list)
    _args: dict[str, str] = field(default_factory=dict)
    _env: dict[str, str] = field(default_factory=dict)
    _workdir: str = "/"
    _shell: tuple[str, ...] = _SHELL
    _entrypoint: SetEntrypoint | None = None
    _command: SetCommand | None = None

    def is_called(self, name: str) -> bool:
        """By its name or number."""
        return name.lower() in self._names

    def parsed(self) -> Parsed:
        if not self.base:
            raise InvalidRequest("dockerfile: it has no FROM; begin with one", field="dockerfile")
        # At the end: which base they override is the same, and an entrypoint takes the command before it away.
        last = [each for each in (self._entrypoint, self._command) if each is not None]
        return Parsed(self.base, (*self._steps, *last))

    def take(self, instruction: Instruction) -> None:
        if not self.base and instruction.name not in ("FROM", "ARG"):
            raise wrong(instruction, "it stands before FROM; begin with FROM")
        if instruction.name in _PASSED_OVER:
            return
        handler = _HANDLERS.get(instruction.name)
        if handler is None:
            known = ", ".join(_HANDLERS)
            raise wrong(instruction, f"it is not supported; use {known}, or build the image elsewhere")
        if not instruction.text:
            raise wrong(instruction, "it says nothing")
        handler(self, instruction)

    # Instructions

    def _from(self, instruction: Instruction) -> None:
        flags, rest = flags_of(instruction.text)
        if flags.keys() - {"platform"}:
            raise wrong(instruction, f"--{min(flags)} is not supported")
        file = self.file
        found = [words.known(each) for each in words.split(rest, file.first_args, file.escape)]
        if len(found) not in (1, 3) or (len(found) == 3 and found[1].upper() != "AS"):
            raise wrong(instruction, "it is not `FROM image` or `FROM image AS name`")
        before = file.stage(found[0]) if not found[0].isdigit() else None
        if before is not None:
            self._go_on_from(before)
        else:
            self.base = SCRATCH if found[0] == "scratch" else found[0]
        self._names = (str(len(file.stages)), *(name.lower() for name in found[2:]))
        file.stages.append(self)

    def _go_on_from(self, before: _Stage) -> None:
        self.base, self._steps = before.base, [*before._steps]
        self._args, self._env = {**before._args}, {**before._env}
        self._workdir, self._shell = before._workdir, before._shell
        self._entrypoint, self._command = before._entrypoint, before._command

    def _arg(self, instruction: Instruction) -> None:
        file = self.file
        for word in words.split(instruction.text, self._variables if self.base else file.first_args, file.escape):
            name, equals, default = words.known(word).partition("=")
            file.declared.add(name)
            values = self._args if self.base else file.first_args
            if name in file.given:
                values[name] = file.given[name]
            elif equals:
                values[name] = default
            elif self.base and name in file.first_args:
                values[name] = file.first_args[name]

    def _run(self, instruction: Instruction) -> None:
        flags, rest = flags_of(instruction.text)
        if flags.keys() - {"mount"}:
            raise wrong(instruction, f"--{min(flags.keys() - {'mount'})} is not supported")
        uses = [use for each in flags.get("mount", ()) for use in self._mount(each, instruction)]
        if instruction.ends_with:
            rest = self._script(rest, instruction)
        argv = json_words(rest) or (*self._shell, rest)
        env = {name: value for name, value in self._args.items() if name not in self._env}
        self._steps.append(Run(argv, env, title=title_of(instruction), secrets=tuple(uses)))

    def _mount(self, text: str, instruction: Instruction) -> list[SecretUse]:
        """The secrets that a mount gives to a command: none for a cache, and for a secret that need not be there."""
        pairs = (part.partition("=") for part in text.split(","))
        options = {name: value if equals else "true" for name, equals, value in pairs}
        kind = options.pop("type", "bind")
        if kind == "cache":
            return []
        if kind != "secret":
            raise wrong(instruction, f"mounts of type={kind} are not supported; only those of type=secret and cache")
        if unknown := options.keys() - {"id", "target", "dst", "destination", "env", "required"}:
            raise wrong(instruction, f"{min(unknown)}= of a secret is not supported; leave it out")
        target = next((options[each] for each in ("target", "dst", "destination") if each in options), "")
        name = options.get("id") or posixpath.basename(target)
        if not name:
            raise wrong(instruction, "the secret has no id; give it one: --mount=type=secret,id=…")
        self.file.mounted.add(name)
        secret = self.file.secrets.get(name)
        if secret is None:
            if options.get("required") == "true":
                raise wrong(instruction, f"it needs the secret {name}; give it with secrets=")
            return []
        variable = options.get("env")
        uses = [] if variable is None else [self._secret(secret, name, variable, None, instruction)]
        if target or variable is None:
            path = posixpath.normpath(posixpath.join("/run/secrets", target or name))
            uses.append(self._secret(secret, name, posixpath.basename(path), posixpath.dirname(path), instruction))
        return uses

    def _secret(
        self, secret: SecretUse, name: str, key: str, directory: str | None, instruction: Instruction
    ) -> SecretUse:
        """`key`: which of the secret's is the file or the variable of that name."""
        if secret.name is not None and not secret.keys:
            secret = replace(secret, keys=(key,))  # whether it has that, the cluster finds out
        if key not in secret.keys:
            keys = ", ".join(secret.keys)
            raise wrong(
                instruction,
                f"the secret {name} is to be called {key}, and its keys are {keys}; give one with that key",
            )
        use = replace(secret, directory=directory)
        check_use("secrets", use)
        return use

    def _script(self, text: str, instruction: Instruction) -> str:
        """The script of a RUN with a here-document."""
        if HEREDOC.fullmatch(text):
            return instruction.heredoc
        if len(HEREDOC.findall(text)) > 1:
            raise wrong(instruction, "several here-documents are not supported; use one")
        return f"{text.replace('<<-', '<<')}\n{instruction.heredoc}{instruction.ends_with}\n"

    def _copy(self, instruction: Instruction) -> None:
        if instruction.ends_with:
            raise wrong(instruction, "here-documents are supported in RUN only")
        flags, rest = flags_of(instruction.text)
        if unknown := flags.keys() - {"chown", "chmod", "link", "from"}:
            raise wrong(instruction, f"--{min(unknown)} is not supported")
        found = list(json_words(rest)) or [
            words.known(each) for each in words.split(rest, self._variables, self.file.escape)
        ]
        if len(found) < 2:
            raise wrong(instruction, "it needs a source and a destination")
        *patterns, target = found
        if "from" in flags:
            self._copy_from(flags, patterns, target, instruction)
            return
        if instruction.name == "ADD" and any(re.match(r"[a-z][a-z0-9+.-]*://|git@", each) for each in patterns):
            raise wrong(instruction, "URLs are not supported; fetch it in RUN")
        sources = self._sources(patterns, instruction)
        into = target.endswith("/") or target in (".", "..") or len(sources) > 1
        path = posixpath.normpath(posixpath.join(self._workdir, target))
        named = [(source, "" if source.is_dir() else source.name if into else "") for source in sources]
        if not into and not sources[0].is_dir():
            named, path = [(sources[0], posixpath.basename(path))], posixpath.dirname(path)
        mode = _mode(flags["chmod"][-1], instruction) if "chmod" in flags else None
        owner, title = self._owner(flags), title_of(instruction)
        self._steps.append(LocalFiles(tuple(named), path, self.file.context, self.file.ignore, owner, title, mode))

    def _copy_from(
        self, flags: Mapping[str, list[str]], patterns: Sequence[str], target: str, instruction: Instruction
    ) -> None:
        if instruction.name == "ADD":
            raise wrong(instruction, "--from is not supported; use COPY")
        name = words.known(words.whole(flags["from"][-1], self.file.first_args))
        stage = self.file.stage(name)
        if stage is self or (stage is None and name.isdigit()):
            raise wrong(instruction, f"there is no stage {name} before this one")
        parsed = Parsed(SCRATCH if name == "scratch" else name, ()) if stage is None else stage.parsed()
        step = StageCopy(
            parsed.base,
            parsed.steps,
            tuple(posixpath.normpath("/" + pattern.lstrip("/")) for pattern in patterns),
            posixpath.normpath(posixpath.join(self._workdir, target)),
            target.endswith("/") or target in (".", ".."),
            self._owner(flags),
            f"{_mode(flags['chmod'][-1], instruction):o}" if "chmod" in flags else "",
            title_of(instruction),
        )
        try:
            check_recipe(Recipe(self.base, (step.resolve(parsed.base),)))
        except InvalidRequest as error:
            raise wrong(instruction, error.message.partition(": ")[2]) from None
        self._steps.append(step)

    def _owner(self, flags: Mapping[str, list[str]]) -> str:
        return words.known(words.whole(flags["chown"][-1], self._variables)) if "chown" in flags else ""

    def _sources(self, patterns: Sequence[str], instruction: Instruction) -> list[Path]:
        found: list[Path] = []
        context = self.file.context.resolve()
        for pattern in patterns:
            inside = posixpath.normpath("/" + pattern).lstrip("/") or "."
            matches = sorted(glob.glob(inside, root_dir=context, include_hidden=True)) or (
                [inside] if (context / inside).exists() else []
            )
            if not matches:
                raise wrong(instruction, f"there is no {pattern!r} in {self.file.context}")
            for match in matches:
                path = context / match
                if not path.resolve().is_relative_to(context):
                    raise wrong(instruction, f"{pattern!r} leads out of {self.file.context}")
                if instruction.name == "ADD" and path.is_file() and tarfile.is_tarfile(path):
                    raise wrong(instruction, f"{pattern!r} is an archive; COPY it, and unpack it in RUN")
                found.append(path)
        return found

    def _set_env(self, instruction: Instruction) -> None:
        pairs = self._pairs(instruction)
        later = {name: words.later(value) for name, value in pairs.items()}
        expand = any(has_variables for _, has_variables in later.values())
        # Where one of them is expanded, all are: in the others, too, a dollar sign is written twice.
        values = {
            name: text if not expand or has_variables else text.replace("$", "$$")
            for name, (text, has_variables) in later.items()
        }
        self._steps.append(SetEnv(values, expand, title_of(instruction)))
        for name, (text, has_variables) in later.items():
            if has_variables:
                self._env.pop(name, None)
                self._args.pop(name, None)
            else:
                self._env[name] = text

    def _label(self, instruction: Instruction) -> None:
        labels = {name: words.known(value) for name, value in self._pairs(instruction).items()}
        self._steps.append(SetLabels(labels, title_of(instruction)))

    def _set_workdir(self, instruction: Instruction) -> None:
        path = words.known(words.whole(instruction.text, self._variables, self.file.escape))
        self._workdir = posixpath.normpath(posixpath.join(self._workdir, path))
        self._steps.append(SetWorkdir(self._workdir, title_of(instruction)))

    def _set_user(self, instruction: Instruction) -> None:
        user = words.known(words.whole(instruction.text, self._variables, self.file.escape))
        self._steps.append(SetUser(user, title_of(instruction)))

    def _set_entrypoint(self, instruction: Instruction) -> None:
        self._entrypoint = SetEntrypoint(self._argv(instruction), title_of(instruction))

    def _set_command(self, instruction: Instruction) -> None:
        self._command = SetCommand(self._argv(instruction), title_of(instruction))

    def _set_shell(self, instruction: Instruction) -> None:
        shell = json_words(instruction.text)
        if not shell:
            raise wrong(instruction, 'it is no list in JSON, such as ["/bin/bash", "-c"]')
        self._shell = shell

    # Inside

    @property
    def _variables(self) -> Mapping[str, str]:
        return {**self._args, **self._env}

    def _argv(self, instruction: Instruction) -> tuple[str, ...]:
        return json_words(instruction.text) or (
            () if instruction.text.strip() == "[]" else (*self._shell, instruction.text)
        )

    def _pairs(self, instruction: Instruction) -> dict[str, words.Word]:
        """`NAME=VALUE …`, or `NAME VALUE`."""
        text = instruction.text
        if "=" not in text.split(None, 1)[0]:
            name, _, value = text.partition(" ")
            if not value.strip():
                raise wrong(instruction, f"{name!r} has no value")
            return {name: words.whole(value.strip(), self._variables, self.file.escape)}
        pairs: dict[str, words.Word] = {}
        for word in words.split(text, self._variables, self.file.escape):
            first = word[0] if word and isinstance(word[0], str) else ""
            name, equals, value = first.partition("=")
            if not equals or not name:
                raise wrong(instruction, f"{first!r:.80} is not NAME=VALUE")
            pairs[name] = (value, *word[1:]) if value else word[1:]
        return pairs


_HANDLERS: Mapping[str, Callable[[_Stage, Instruction], None]] = {
    "FROM": _Stage._from,
    "ARG": _Stage._arg,
    "RUN": _Stage._run,
    "COPY": _Stage._copy,
    "ADD": _Stage._copy,
    "ENV": _Stage._set_env,
    "WORKDIR": _Stage._set_workdir,
    "USER": _Stage._set_user,
    "ENTRYPOINT": _Stage._set_entrypoint,
    "CMD": _Stage._set_command,
    "LABEL": _Stage._label,
    "SHELL": _Stage._set_shell,
}


def _mode(text: str, instruction: Instruction) -> int:
    if not re.fullmatch("[0-7]{3,4}", text):
        raise wrong(instruction, f"--chmod={text} is no octal mode; write one, such as 755")
    return int(text, 8)
