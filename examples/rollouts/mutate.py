"""The policy: a stand-in for the model that proposes small patches of one module.

Some are harmless, most break something.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

SWAPS = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "is": "is not",
    "is not": "is",
    "in": "not in",
    "not in": "in",
    "+": "-",
    "-": "+",
    "*": "//",
    "//": "*",
    "%": "+",
    "and": "or",
    "or": "and",
}
OPERATOR = re.compile(rb"is\s+not\b|not\s+in\b|is\b|in\b|and\b|or\b|==|!=|<=|>=|//|\*\*|<|>|\+|-|\*|%")


@dataclass(frozen=True, slots=True, order=True)
class Patch:
    """Replaces `old` by `new` on one line. `line` counts from 1, `column` is a byte offset, as in `ast`."""

    line: int
    column: int
    old: str
    new: str

    def apply(self, source: str) -> str:
        """The module's text with the patch applied."""
        lines = source.encode().splitlines(keepends=True)
        line, end = lines[self.line - 1], self.column + len(self.old.encode())
        if line[self.column : end] != self.old.encode():
            raise ValueError(f"line {self.line} does not hold {self.old!r} at column {self.column}")
        lines[self.line - 1] = line[: self.column] + self.new.encode() + line[end:]
        return b"".join(lines).decode()

    def __str__(self) -> str:
        return f"line {self.line}: {self.old} → {self.new or '(nothing)'}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One proposal: the whole text of the module. Number 0 is unpatched."""

    number: int
    patch: Patch | None
    source: str


def propose(source: str, count: int, seed: int) -> list[Candidate]:
    """`count` different candidates of `source`, the first without a patch; the same ones for the same seed.

    Raises `ValueError` where the module has not that many.
    """
    patches = sorted(set(all_patches(source)))
    if not 1 <= count <= len(patches) + 1:
        raise ValueError(f"candidates: {count} is out of range; this module gives 1 to {len(patches) + 1}")
    chosen = random.Random(seed).sample(patches, count - 1)
    return [
        Candidate(0, None, source),
        *(Candidate(number, patch, patch.apply(source)) for number, patch in enumerate(chosen, start=1)),
    ]


def all_patches(source: str) -> Iterator[Patch]:
    """Every patch of a module that the policy can propose."""
    lines = source.encode().splitlines()
    for node in _walk(ast.parse(source)):
        yield from _patches_of(node, lines)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those in f-strings, whose positions Python 3.11 does not know."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.JoinedStr):
            yield from _walk(child)


def _patches_of(node: ast.AST, lines: list[bytes]) -> Iterator[Patch]:
    match node:
        case ast.Compare(left=left, comparators=[right]):
            yield from _swap_between(left, right, lines)
        case ast.BinOp(left=left, right=right):
            yield from _swap_between(left, right, lines)
        case ast.BoolOp(values=[left, right]):
            yield from _swap_between(left, right, lines)
        case ast.UnaryOp(op=ast.Not(), operand=operand) if operand.lineno == node.lineno:
            yield Patch(
                node.lineno, node.col_offset, _text(lines, node.lineno, node.col_offset, operand.col_offset), ""
            )
        case ast.Constant(value=bool(value)):
            yield Patch(node.lineno, node.col_offset, str(value), str(not value))
        case ast.Constant(value=int(value)) if node.end_col_offset is not None:
            old = _text(lines, node.lineno, node.col_offset, node.end_col_offset)
            yield Patch(node.lineno, node.col_offset, old, str(value + 1))
        case ast.Return(value=ast.expr()) if node.end_lineno == node.lineno and node.end_col_offset is not None:
            start = node.col_offset + len("return ")
            old = _text(lines, node.lineno, start, node.end_col_offset)
            if old != "None":
                yield Patch(node.lineno, start, old, "None")


def _swap_between(left: ast.expr, right: ast.expr, lines: list[bytes]) -> Iterator[Patch]:
    """The operator between two operands on one line: the tree does not tell where it stands, but nothing else than
    brackets is there.
    """
    if left.end_lineno != right.lineno or left.end_col_offset is None:
        return
    found = OPERATOR.search(lines[right.lineno - 1], left.end_col_offset, right.col_offset)
    if found is not None and (new := SWAPS.get(found[0].decode())) is not None:
        yield Patch(right.lineno, found.start(), found[0].decode(), new)


def _text(lines: list[bytes], line: int, start: int, end: int) -> str:
    return lines[line - 1][start:end].decode()
