"""The instructions of a Dockerfile, one by one, as they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shoal.model.errors import InvalidRequest

HEREDOC = re.compile(r"<<(-?)(['\"]?)(\w+)\2")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*$")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?\s+")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `line`: where it begins, from 1; `text`: all after its name; `heredoc`: lines after it."""

    line: int
    name: str
    text: str
    heredoc: str = ""
    ends_with: str = ""


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
        if instruction.name in ("RUN", "COPY", "ADD") and (found := HEREDOC.search(instruction.text)):
            end = next((n for n in range(at, len(lines)) if _strip(lines[n], found[1]) == found[3]), None)
            if end is None:
                raise wrong(instruction, f"the here-document {found[3]} does not end")
            body = "".join(f"{_strip(line, found[1])}\n" for line in lines[at:end])
            at = end + 1
            instruction = Instruction(start + 1, instruction.name, instruction.text, body, found[3])
        yield instruction


def _strip(line: str, dash: str) -> str:
    return line.lstrip("\t") if dash else line


def escape_of(text: str) -> str:
    """The escape character: directives stand before all else."""
    for line in text.splitlines():
        directive = _DIRECTIVE.match(line.strip())
        if directive is None:
            break
        if directive[1].lower() == "escape" and directive[2] in ("\\", "`"):
            return directive[2]
    return "\\"


def wrong(instruction: Instruction, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"dockerfile: line {instruction.line}: {instruction.name}: {why}", field="dockerfile", line=instruction.line
    )


def flags_of(text: str) -> tuple[dict[str, list[str]], str]:
    """The flags before an instruction's words, and the rest."""
    found: dict[str, list[str]] = {}
    while flag := _FLAG.match(text):
        found.setdefault(flag[1], []).append(flag[2] or "")
        text = text[flag.end() :]
    return found, text.strip()


def json_words(text: str) -> tuple[str, ...]:
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


def title_of(instruction: Instruction) -> str:
    more = " …" if instruction.heredoc or "\n" in instruction.text else ""
    return f"{instruction.name} {instruction.text.partition(chr(10))[0]}{more}"[:200]
