"""Which files do not go into an image, by patterns as in a `.dockerignore` file.

A pattern is matched from the top: `*.pyc` means those at the top, `**/*.pyc` all. One that matches a directory means
all in it. `!` before a pattern takes back what earlier ones say; the last that matches counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shoal.model.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Ignore:
    """Patterns, and what they mean for the names of files."""

    patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Ignore:
        """`InvalidRequest` for what is no list of patterns."""
        if isinstance(patterns, str | bytes):
            raise InvalidRequest("ignore: it is one string; give a list of patterns", field="ignore")
        given = tuple(patterns)
        if not all(isinstance(each, str) for each in given):
            raise InvalidRequest("ignore: a pattern is no string; give strings", field="ignore")
        return cls(given)

    @classmethod
    def read(cls, file: Path) -> Ignore:
        """The patterns of a file, one per line; none if it does not exist."""
        try:
            lines = file.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return cls()
        return cls(tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")))

    @property
    def takes_back(self) -> bool:
        """Whether a file in an ignored directory may still be wanted."""
        return any(each.strip().startswith("!") for each in self.patterns)

    def rules(self) -> IgnoreRules:
        """The patterns, ready to match many names."""
        return IgnoreRules([_rule(each) for each in self.patterns if each.strip()])


class IgnoreRules:
    """Compiled patterns."""

    def __init__(self, rules: list[tuple[re.Pattern[str], bool]]) -> None:
        self._rules = rules

    def __call__(self, name: str) -> bool:
        """Whether the file of this name, relative and with slashes, is ignored."""
        ignored = False
        for pattern, ignores in self._rules:
            if ignores != ignored and pattern.match(name):
                ignored = ignores
        return ignored


def _rule(pattern: str) -> tuple[re.Pattern[str], bool]:
    text = pattern.strip()
    ignores = not text.startswith("!")
    text = text.removeprefix("!").strip().strip("/")
    while text.startswith("./"):
        text = text[2:]
    return re.compile(f"{_regex(text)}(?:/.*)?$", re.DOTALL), ignores


def _regex(pattern: str) -> str:
    """A pattern of Go's `filepath.Match` with `**`, as a regular expression."""
    found = []
    at = 0
    while at < len(pattern):
        rest = pattern[at:]
        if rest.startswith("**/"):
            found.append("(?:.*/)?")
            at += 3
        elif rest.startswith("**"):
            found.append(".*")
            at += 2
        elif rest[0] == "*":
            found.append("[^/]*")
            at += 1
        elif rest[0] == "?":
            found.append("[^/]")
            at += 1
        elif rest[0] == "\\" and len(rest) > 1:
            found.append(re.escape(rest[1]))
            at += 2
        elif rest[0] == "[" and "]" in rest[2:]:
            end = rest.index("]", 2)
            members = rest[1:end]
            negated = members.startswith("^")
            body = members[negated:].replace("\\", "").replace("[", "\\[").replace("]", "\\]")
            found.append(f"[{'^/' if negated else ''}{body}]")
            at += end + 1
        else:
            found.append(re.escape(rest[0]))
            at += 1
    return "".join(found)
