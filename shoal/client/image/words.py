"""The words of a Dockerfile's instruction: quotes, escapes and variables.

What a variable stands for may not be known here: the base's own variables are known to the cluster only. So a word is a
sequence of parts, each a text or a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-+])([^{}]*))?\}")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A variable that nothing here has set."""

    name: str


Word = tuple[str | Unknown, ...]


class Malformed(ValueError):
    """Why a text cannot be split into words."""


def split(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[Word]:
    """The words of a text, without their quotes. Raises `Malformed`."""
    return [tuple(_merged(word)) for word in _Reader(text, variables, escape).words()]


def whole(text: str, variables: Mapping[str, str], escape: str = "\\") -> Word:
    """The text as one word, spaces included."""
    (word,) = _Reader(text, variables, escape, one=True).words() or [[]]
    return tuple(_merged(word))


def known(word: Word) -> str:
    """The word as text. Raises `Malformed` if it has a variable that is not known."""
    for part in word:
        if isinstance(part, Unknown):
            raise Malformed(f"${part.name} is not set in this Dockerfile; set it by ARG or ENV")
    return "".join(part for part in word if isinstance(part, str))


def later(word: Word) -> tuple[str, bool]:
    """(text, whether it has variables that are not known). Those are written `${NAME}`, and a dollar sign `$$`."""
    if not any(isinstance(part, Unknown) for part in word):
        return known(word), False
    return "".join(f"${{{part.name}}}" if isinstance(part, Unknown) else part.replace("$", "$$") for part in word), True


def _merged(parts: Sequence[str | Unknown]) -> Iterator[str | Unknown]:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield text
        text = ""
        yield part
    if text:
        yield text


class _Reader:
    """One text, read from left to right."""

    def __init__(self, text: str, variables: Mapping[str, str], escape: str, one: bool = False) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._one = one
        self._at = 0

    def words(self) -> list[list[str | Unknown]]:
        found: list[list[str | Unknown]] = []
        word: list[str | Unknown] | None = None
        while self._at < len(self._text):
            char = self._text[self._at]
            if char.isspace() and not self._one:
                if word is not None:
                    found.append(word)
                word = None
                self._at += 1
                continue
            if word is None:
                word = []
            if char == "'":
                word.append(self._until_quote())
            elif char == '"':
                self._at += 1
                self._in_quotes(word)
            else:
                self._plain(word, self._escape)
        if word is not None:
            found.append(word)
        return found

    def _until_quote(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise Malformed("a single quote is not closed")
        text, self._at = self._text[self._at + 1 : end], end + 1
        return text

    def _in_quotes(self, word: list[str | Unknown]) -> None:
        word.append("")  # "" is a word, too
        while self._at < len(self._text):
            if self._text[self._at] == '"':
                self._at += 1
                return
            self._plain(word, self._escape, only='"$' + self._escape)
        raise Malformed("a double quote is not closed")

    def _plain(self, word: list[str | Unknown], escape: str, only: str = "") -> None:
        """One character, escaped character or variable. `only`: what an escape may stand before, if not anything."""
        char = self._text[self._at]
        after = self._text[self._at + 1 : self._at + 2]
        if char == escape and after and (not only or after in only):
            word.append(after)
            self._at += 2
        elif char == "$":
            word.append(self._variable())
        else:
            word.append(char)
            self._at += 1

    def _variable(self) -> str | Unknown:
        self._at += 1
        if braced := _BRACED.match(self._text, self._at):
            self._at = braced.end()
            return self._value(braced[1], braced[2] or "", braced[3] or "")
        if self._text[self._at : self._at + 1] == "{":
            raise Malformed(f"{self._text[self._at - 1 : self._at + 40]!r} is no variable that can be used here")
        if name := _NAME.match(self._text, self._at):
            self._at = name.end()
            return self._value(name[0], "", "")
        return "$"

    def _value(self, name: str, operator: str, other: str) -> str | Unknown:
        value = self._variables.get(name)
        is_set = bool(value) if operator.startswith(":") else value is not None
        if operator.endswith("-"):
            return value if is_set and value is not None else self._nested(other)
        if operator.endswith("+"):
            return self._nested(other) if is_set else ""
        return Unknown(name) if value is None else value

    def _nested(self, text: str) -> str:
        return known(whole(text, self._variables, self._escape))
