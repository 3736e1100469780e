"""Reading `cluster.yaml`. What is wrong in it is told with its line and the field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.nodes import MappingNode, Node, SequenceNode

from shoal.cluster.scaling.spec import CLUSTER_SPEC, ClusterSpec
from shoal.model.errors import InvalidRequest

_LARGEST = 1 << 20
_SHOWN = 5
"""Mistakes that one message tells."""

_PROVIDERS = ("aws", "local")

_WHAT = {
    "extra_forbidden": "there is no such field",
    "missing": "it is missing",
    "union_tag_invalid": f"there are only {' and '.join(_PROVIDERS)}",
    "union_tag_not_found": f"it is missing; there are {' and '.join(_PROVIDERS)}",
}
"""In place of pydantic's words."""


def read_file(path: Path) -> ClusterSpec:
    """The cluster that a file describes. Raises `InvalidRequest` with the line and the field of what is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}", field="cluster") from None
    if len(text) > _LARGEST:
        raise InvalidRequest(f"{path}: more than 1 MiB; is it the right file?", field="cluster")
    return read_text(text, path.name)


def read_text(text: str | bytes, name: str = "cluster.yaml") -> ClusterSpec:
    """Like `read_file`; `name` is what messages call it."""
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        _refuse(tree, name)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 0 if mark is None else mark.line + 1
        raise InvalidRequest(f"{name}:{line}: not YAML: {error.problem or error.context}", field="cluster") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name}: not YAML: {error}", field="cluster") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"{name}: not a mapping; shoal/configs/ has examples", field="cluster")
    try:
        return CLUSTER_SPEC.validate_python(data)
    except ValidationError as error:
        raise _told(error, tree, name) from None


def _refuse(tree: Node | None, name: str) -> None:
    """What YAML lets pass silently: a key twice, of which the last would count, and aliases, which can be huge."""
    waiting, seen = [tree], set()
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if id(node) in seen:
            raise InvalidRequest(f"{name}:{node.start_mark.line + 1}: anchors and aliases are not used here", field="&")
        seen.add(id(node))
        if isinstance(node, MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if str(key.value) in keys:
                    line = key.start_mark.line + 1
                    raise InvalidRequest(f"{name}:{line}: {key.value} is there twice; remove one", field=str(key.value))
                keys.add(str(key.value))
                waiting.append(value)
        elif isinstance(node, SequenceNode):
            waiting += node.value


def _told(error: ValidationError, tree: Node | None, name: str) -> InvalidRequest:
    lines, first = [], ""
    for mistake in error.errors(include_url=False):
        path = [str(part) for part in mistake["loc"] if part not in (*_PROVIDERS, "[key]")]
        if mistake["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path = ["provider"]
        field = ".".join(path)
        first = first or field
        what = _WHAT.get(mistake["type"]) or str(mistake["msg"]).removeprefix("Value error, ")
        lines.append(f"{name}:{_line(tree, path)}: {field + ': ' if field else ''}{what[:300]}")
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"and {len(lines) - _SHOWN} more mistakes"]
    return InvalidRequest("; ".join(lines), field=first or "cluster")


def _line(tree: Node | None, path: Sequence[str]) -> int:
    """The line of what `path` leads to, or of as much of it as there is."""
    line = 1
    node: Any = tree
    for part in path:
        if isinstance(node, MappingNode):
            found = [(key, value) for key, value in node.value if str(key.value) == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            break
    return line
