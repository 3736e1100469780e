"""A Dockerfile as a recipe.

Understood: FROM (one), RUN, COPY, ADD (local files), ENV, ARG, WORKDIR, USER, ENTRYPOINT, CMD, LABEL, SHELL, and
here-documents in RUN. EXPOSE, VOLUME, HEALTHCHECK, STOPSIGNAL and MAINTAINER are about something else than files and
defaults, and are passed over, as are cache mounts. All else is refused, with its line: several stages, `COPY --from`,
secret and bind mounts, ONBUILD, URLs and archives in ADD.
"""

from __future__ import annotations

import glob
import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.client.image import words
from shoal.client.image.ignore import Ignore
from shoal.client.image.local_files import LocalFiles
from shoal.model.errors import InvalidRequest
from shoal.model.recipe import SCRATCH, Run, SetCommand, SetEntrypoint, SetEnv, SetLabels, SetUser, SetWorkdir, Step

MOST_BYTES = 1 << 20

_PASSED_OVER = frozenset({"EXPOSE", "VOLUME", "HEALTHCHECK", "STOPSIGNAL", "MAINTAINER"})
_HEREDOC = re.compile(r"<<(-?)(['\"]?)(\w+)\2")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*$")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?\s+")
_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `line`: where it begins, from 1; `text`: all after its name; `heredoc`: lines after it."""

    line: int
    name: str
    text: str
    heredoc: str = ""
    ends_with: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a Dockerfile says: the base, and the steps."""

    base: str
    steps: tuple[Step | LocalFiles, ...]


def parse(text: str, context: Path, args: Mapping[str, str], ignore: Ignore) -> Parsed:
    """The recipe of a Dockerfile. `context`: the directory that COPY and ADD are relative to; `args`: values for its
    ARGs. Raises `InvalidRequest` (field `dockerfile`, and its `line`)."""
    if len(text) > MOST_BYTES:
        raise InvalidRequest(f"dockerfile: it has more than {MOST_BYTES:,} characters", field="dockerfile")
    escape = _escape_of(text)
    stage = _Stage(context, dict(args), ignore, escape)
    for instruction in instructions(text, escape):
        try:
            stage.take(instruction)
        except words.Malformed as error:
            raise _wrong(instruction, str(error)) from None
    if unknown := args.keys() - stage.declared:
        raise InvalidRequest(f"args: the Dockerfile has no ARG {min(unknown)}; leave it out", field="args")
    return stage.parsed()


def instructions(text: str, escape: str = "\\") -> Iterator[Instruction]:
    """The instructions in order, with continued lines joined."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        start = at
        joined = ""
        while at < len(lines):
            line = lines[at]
            at += 1
            if not line.strip() or line.lstrip().startswith("#"):
                if joined:
                    continue  # an empty line or a comment amid a continued instruction
                start = at
                break
            stripped = line.rstrip()
            if stripped.endswith(escape):
                joined += stripped[:-1]
                continue
            joined += line
            break
        if not joined.strip():
            continue
        name, _, rest = joined.strip().partition(" ")
        name, tab, more = name.partition("\t")
        instruction = Instruction(start + 1, name.upper(), f"{more}{tab}{rest}".strip())
        if instruction.name in ("RUN", "COPY", "ADD") and (found := _HEREDOC.search(instruction.text)):
            end = next((n for n in range(at, len(lines)) if _strip(lines[n], found[1]) == found[3]), None)
            if end is None:
                raise _wrong(instruction, f"the here-document {found[3]} does not end")
            body = "".join(f"{_strip(line, found[1])}\n" for line in lines[at:end])
            at = end + 1
            instruction = Instruction(start + 1, instruction.name, instruction.text, body, found[3])
        yield instruction


def _strip(line: str, dash: str) -> str:
    return line.lstrip("\t") if dash else line


def _escape_of(text: str) -> str:
    """The escape character: directives stand before all else."""
    for line in text.splitlines():
        directive = _DIRECTIVE.match(line.strip())
        if directive is None:
            break
        if directive[1].lower() == "escape" and directive[2] in ("\\", "`"):
            return directive[2]
    return "\\"


def _wrong(instruction: Instruction, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"dockerfile: line {instruction.line}: {instruction.name}: {why}", field="dockerfile", line=instruction.line
    )


@dataclass(slots=True)
class _Stage:
    """The one stage, as far as it was read."""

    context: Path
    given: Mapping[str, str]
    ignore: Ignore
    escape: str
    base: str = ""
    declared: set[str] = field(default_factory=set)
    _steps: list[Step | LocalFiles] = field(default_factory=list)
    _first_args: dict[str, str] = field(default_factory=dict)
    _args: dict[str, str] = field(default_factory=dict)
    _env: dict[str, str] = field(default_factory=dict)
    _workdir: str = "/"
    _shell: tuple[str, ...] = _SHELL
    _entrypoint: SetEntrypoint | None = None
    _command: SetCommand | None = None

    def parsed(self) -> Parsed:
        if not self.base:
            raise InvalidRequest("dockerfile: it has no FROM; begin with one", field="dockerfile")
        # At the end: which base they override is the same, and an entrypoint takes the command before it away.
        last = [each for each in (self._entrypoint, self._command) if each is not None]
        return Parsed(self.base, (*self._steps, *last))

    def take(self, instruction: Instruction) -> None:
        if not self.base and instruction.name not in ("FROM", "ARG"):
            raise _wrong(instruction, "it stands before FROM; begin with FROM")
        if instruction.name in _PASSED_OVER:
            return
        handler = _HANDLERS.get(instruction.name)
        if handler is None:
            known = ", ".join(_HANDLERS)
            raise _wrong(instruction, f"it is not supported; use {known}, or build the image elsewhere")
        if not instruction.text:
            raise _wrong(instruction, "it says nothing")
        handler(self, instruction)

    # Instructions

    def _from(self, instruction: Instruction) -> None:
        if self.base:
            raise _wrong(instruction, "several stages are not supported; build them one after another, as images")
        flags, rest = _flags(instruction.text)
        if flags.keys() - {"platform"}:
            raise _wrong(instruction, f"--{min(flags)} is not supported")
        found = [words.known(each) for each in words.split(rest, self._first_args, self.escape)]
        if len(found) not in (1, 3) or (len(found) == 3 and found[1].upper() != "AS"):
            raise _wrong(instruction, "it is not `FROM image` or `FROM image AS name`")
        self.base = SCRATCH if found[0] == "scratch" else found[0]

    def _arg(self, instruction: Instruction) -> None:
        for word in words.split(instruction.text, self._variables if self.base else self._first_args, self.escape):
            name, equals, default = words.known(word).partition("=")
            self.declared.add(name)
            values = self._args if self.base else self._first_args
            if name in self.given:
                values[name] = self.given[name]
            elif equals:
                values[name] = default
            elif self.base and name in self._first_args:
                values[name] = self._first_args[name]

    def _run(self, instruction: Instruction) -> None:
        flags, rest = _flags(instruction.text)
        if flags.keys() - {"mount"} or not all(_is_cache(each) for each in flags.get("mount", ())):
            flag = next(iter(flags.keys() - {"mount"}), "mount")
            raise _wrong(instruction, f"--{flag} is not supported (of mounts, those of type=cache are passed over)")
        if instruction.ends_with:
            rest = self._script(rest, instruction)
        argv = _json_words(rest) or (*self._shell, rest)
        env = {name: value for name, value in self._args.items() if name not in self._env}
        self._steps.append(Run(argv, env, title=_title(instruction)))

    def _script(self, text: str, instruction: Instruction) -> str:
        """The script of a RUN with a here-document."""
        if _HEREDOC.fullmatch(text):
            return instruction.heredoc
        if len(_HEREDOC.findall(text)) > 1:
            raise _wrong(instruction, "several here-documents are not supported; use one")
        return f"{text.replace('<<-', '<<')}\n{instruction.heredoc}{instruction.ends_with}\n"

    def _copy(self, instruction: Instruction) -> None:
        if instruction.ends_with:
            raise _wrong(instruction, "here-documents are supported in RUN only")
        flags, rest = _flags(instruction.text)
        if unknown := flags.keys() - {"chown", "chmod", "link"}:
            raise _wrong(instruction, f"--{min(unknown)} is not supported")
        found = list(_json_words(rest)) or [
            words.known(each) for each in words.split(rest, self._variables, self.escape)
        ]
        if len(found) < 2:
            raise _wrong(instruction, "it needs a source and a destination")
        *patterns, target = found
        if instruction.name == "ADD" and any(re.match(r"[a-z][a-z0-9+.-]*://|git@", each) for each in patterns):
            raise _wrong(instruction, "URLs are not supported; fetch it in RUN")
        sources = self._sources(patterns, instruction)
        into = target.endswith("/") or target in (".", "..") or len(sources) > 1
        path = posixpath.normpath(posixpath.join(self._workdir, target))
        named = [(source, "" if source.is_dir() else source.name if into else "") for source in sources]
        if not into and not sources[0].is_dir():
            named, path = [(sources[0], posixpath.basename(path))], posixpath.dirname(path)
        mode = _mode(flags["chmod"][-1], instruction) if "chmod" in flags else None
        owner = words.known(words.whole(flags["chown"][-1], self._variables)) if "chown" in flags else ""
        self._steps.append(LocalFiles(tuple(named), path, self.context, self.ignore, owner, _title(instruction), mode))

    def _sources(self, patterns: Sequence[str], instruction: Instruction) -> list[Path]:
        found: list[Path] = []
        context = self.context.resolve()
        for pattern in patterns:
            inside = posixpath.normpath("/" + pattern).lstrip("/") or "."
            matches = sorted(glob.glob(inside, root_dir=context, include_hidden=True)) or (
                [inside] if (context / inside).exists() else []
            )
            if not matches:
                raise _wrong(instruction, f"there is no {pattern!r} in {self.context}")
            for match in matches:
                path = context / match
                if not path.resolve().is_relative_to(context):
                    raise _wrong(instruction, f"{pattern!r} leads out of {self.context}")
                if instruction.name == "ADD" and path.is_file() and tarfile.is_tarfile(path):
                    raise _wrong(instruction, f"{pattern!r} is an archive; COPY it, and unpack it in RUN")
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
        self._steps.append(SetEnv(values, expand, _title(instruction)))
        for name, (text, has_variables) in later.items():
            if has_variables:
                self._env.pop(name, None)
                self._args.pop(name, None)
            else:
                self._env[name] = text

    def _label(self, instruction: Instruction) -> None:
        labels = {name: words.known(value) for name, value in self._pairs(instruction).items()}
        self._steps.append(SetLabels(labels, _title(instruction)))

    def _set_workdir(self, instruction: Instruction) -> None:
        path = words.known(words.whole(instruction.text, self._variables, self.escape))
        self._workdir = posixpath.normpath(posixpath.join(self._workdir, path))
        self._steps.append(SetWorkdir(self._workdir, _title(instruction)))

    def _set_user(self, instruction: Instruction) -> None:
        user = words.known(words.whole(instruction.text, self._variables, self.escape))
        self._steps.append(SetUser(user, _title(instruction)))

    def _set_entrypoint(self, instruction: Instruction) -> None:
        self._entrypoint = SetEntrypoint(self._argv(instruction), _title(instruction))

    def _set_command(self, instruction: Instruction) -> None:
        self._command = SetCommand(self._argv(instruction), _title(instruction))

    def _set_shell(self, instruction: Instruction) -> None:
        shell = _json_words(instruction.text)
        if not shell:
            raise _wrong(instruction, 'it is no list in JSON, such as ["/bin/bash", "-c"]')
        self._shell = shell

    # Inside

    @property
    def _variables(self) -> Mapping[str, str]:
        return {**self._args, **self._env}

    def _argv(self, instruction: Instruction) -> tuple[str, ...]:
        return _json_words(instruction.text) or (
            () if instruction.text.strip() == "[]" else (*self._shell, instruction.text)
        )

    def _pairs(self, instruction: Instruction) -> dict[str, words.Word]:
        """`NAME=VALUE …`, or `NAME VALUE`."""
        text = instruction.text
        if "=" not in text.split(None, 1)[0]:
            name, _, value = text.partition(" ")
            if not value.strip():
                raise _wrong(instruction, f"{name!r} has no value")
            return {name: words.whole(value.strip(), self._variables, self.escape)}
        pairs: dict[str, words.Word] = {}
        for word in words.split(text, self._variables, self.escape):
            first = word[0] if word and isinstance(word[0], str) else ""
            name, equals, value = first.partition("=")
            if not equals or not name:
                raise _wrong(instruction, f"{first!r:.80} is not NAME=VALUE")
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


def _flags(text: str) -> tuple[dict[str, list[str]], str]:
    """The flags before an instruction's words, and the rest."""
    found: dict[str, list[str]] = {}
    while flag := _FLAG.match(text):
        found.setdefault(flag[1], []).append(flag[2] or "")
        text = text[flag.end() :]
    return found, text.strip()


def _is_cache(mount: str) -> bool:
    return "type=cache" in mount.split(",")


def _json_words(text: str) -> tuple[str, ...]:
    """The words of a JSON list; none where it is no such list."""
    if not text.lstrip().startswith("["):
        return ()
    try:
        found = json.loads(text)
    except ValueError:
        return ()  # a shell's `[ … ]`
    if isinstance(found, list) and all(isinstance(each, str) for each in found):
        return tuple(found)
    return ()


def _mode(text: str, instruction: Instruction) -> int:
    if not re.fullmatch("[0-7]{3,4}", text):
        raise _wrong(instruction, f"--chmod={text} is no octal mode; write one, such as 755")
    return int(text, 8)


def _title(instruction: Instruction) -> str:
    more = " …" if instruction.heredoc or "\n" in instruction.text else ""
    return f"{instruction.name} {instruction.text.partition(chr(10))[0]}{more}"[:200]
