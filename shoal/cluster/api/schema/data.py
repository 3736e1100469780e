"""The JSON of the data half: processes, files, attachments.

Types are strict: a number in quotes is no number. A path is a string or, where it is not UTF-8, `{"b64": "…"}`; inside
the replica both are a `str` in which `os.fsencode` finds the bytes again.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, RootModel, WithJsonSchema
from pydantic_core import PydanticKnownError

from shoal.client.arguments import SHELL
from shoal.model import errors, ids
from shoal.model.field_types import at_most
from shoal.model.strict import Strict
from shoal.model.validate import MAX_ARGV_ITEM, MAX_START_ITEMS, text_size
from shoal.wire import checks
from shoal.wire.records import Entry, Start, Terminal

MAX_SECONDS = 365 * 86400
DEFAULT_OUTPUT = 8 << 20
MAX_OUTPUT = 64 << 20
MAX_DIMENSION = 65535
ACTS = "Who does it, in the sandbox; default: the sandbox's user"

_B64_SCHEMA = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}
_PATH_SCHEMA = {"anyOf": [{"type": "string", "pattern": "^/"}, _B64_SCHEMA]}


def _path(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            raise ValueError("b64 is not base64") from None
    raise ValueError('give an absolute path as a string, or {"b64": "…"} where it is not UTF-8')


def _texts(value: object) -> object:
    """Refuses a large object at its first value that is no text: pydantic would make an error of each."""
    if isinstance(value, dict) and len(value) > _MANY:
        for each in value.values():
            if each is not None and not isinstance(each, str):
                raise PydanticKnownError("string_type")
    return value


_MANY = 1000
_TEXTS = BeforeValidator(_texts)
PathText = Annotated[str, PlainValidator(_path), WithJsonSchema(_PATH_SCHEMA)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Dimension = Annotated[int, Field(ge=1, le=MAX_DIMENSION)]
Offset = Annotated[int, Field(ge=0, le=checks.MAX_OFFSET)]
Stream = Literal["stdout", "stderr"]
FD: dict[str, int] = {"stdout": 1, "stderr": 2}


class Command(Strict):
    """What to run: `argv`, or `command` for a line of the shell."""

    argv: Annotated[list[str], Field(min_length=1, max_length=MAX_START_ITEMS, fail_fast=True)] | None = Field(
        None, description="The program and its arguments"
    )
    command: str | None = Field(None, description=f"A line for `{SHELL} -c`, in the place of `argv`")
    env: (
        Annotated[dict[str, str | None], Field(max_length=MAX_START_ITEMS), at_most(MAX_START_ITEMS), _TEXTS] | None
    ) = Field(None, description="Over the sandbox's own; null removes one")
    workdir: PathText | None = Field(None, description="Absolute; default: the sandbox's")
    user: str | None = Field(None, description="`name`, `uid`, `uid:gid` or `name:group`; default: the sandbox's")
    timeout: Seconds | None = Field(None, description="Seconds after which its whole tree is killed")
    merge_stderr: bool = Field(False, description="Send what it writes to stderr to stdout")
    id: str | None = Field(
        None, description="`p-` and 1 to 32 lower-case letters and digits: the same start sent again starts nothing"
    )

    def start(self) -> Start:
        """The start, checked as far as it can be before it is sent (`InvalidRequest`)."""
        process_id = ids.new_process_id() if self.id is None else checks.process_id(self.id)
        if self.workdir is not None:
            checks.path(self.workdir, "workdir")
        start = Start(process_id, self._argv(), self.env or {}, self.workdir, self.user or "", self.timeout or 0)
        start.request("exec")
        return start

    def _argv(self) -> list[str]:
        if (self.argv is None) == (self.command is None):
            raise errors.InvalidRequest("give either argv or command, and not both", field="argv")
        if self.argv is not None:
            return self.argv
        assert self.command is not None
        if (size := text_size("command", self.command)) > MAX_ARGV_ITEM:
            raise errors.InvalidRequest(
                f"command is {size} bytes long, at most {MAX_ARGV_ITEM} are possible: write it to a file first",
                field="command",
            )
        return [SHELL, "-c", self.command]


class Exec(Command):
    """One command, run to its end."""

    input: str | None = Field(None, description="Its standard input, as text")
    input_base64: str | None = Field(None, description="Its standard input, as base64")
    max_output: Annotated[int, Field(ge=0, le=MAX_OUTPUT)] = Field(
        DEFAULT_OUTPUT, description="Bytes of stdout and of stderr that are kept, each; the rest is dropped"
    )
    encoding: Literal["utf-8", "base64"] = Field("utf-8", description="Of stdout and stderr in the answer")

    def stdin(self) -> bytes | None:
        """Its input as bytes, None for none."""
        if self.input is not None:
            if self.input_base64 is not None:
                raise errors.InvalidRequest("give either input or input_base64, not both", field="input_base64")
            text_size(self.input.replace("\0", ""), "input")
            return self.input.encode()
        if self.input_base64 is None:
            return None
        try:
            return base64.b64decode(self.input_base64, validate=True)
        except (binascii.Error, ValueError):
            raise errors.InvalidRequest("input_base64 is not base64", field="input_base64") from None


class Size(Strict):
    """A terminal's size."""

    rows: Dimension
    cols: Dimension


class Pty(Size):
    """A terminal."""

    echo: bool = Field(True, description="Whether it repeats its input in its output")
    term: str | None = Field(None, description="The variable TERM; default: the sandbox's, else `xterm`")


class ProcessStart(Command):
    """A process to start. Read its output, or it waits once 1 MiB of it is unread."""

    pty: Pty | None = Field(None, description="Give it a terminal of that size")

    @property
    def terminal(self) -> Terminal | None:
        pty = self.pty
        return None if pty is None else Terminal(pty.rows, pty.cols, pty.echo, pty.term)


class Return(Strict):
    """Back to a process that was attached to before. Offsets are in bytes since its start."""

    id: str
    stdout_offset: Offset = 0
    stderr_offset: Offset = 0
    stdin_offset: Offset | None = Field(
        None,
        description="Of the first byte that will be sent; what the process has already is skipped. None: where it is",
    )


class Signal(Strict):
    """A signal to a process's group."""

    signal: int | str = Field(description="A number from 1 to 64, or a name such as `SIGTERM`")
    tree: bool = Field(False, description="To all its descendants instead")


class Eof(Strict):
    """Closes the process's standard input."""

    type: Literal["eof"]


class Resize(Size):
    """Sets the size of the process's terminal."""

    type: Literal["resize"]


class Kill(Signal):
    """Sends the process a signal."""

    type: Literal["signal"]


class Said(RootModel[Annotated[Eof | Resize | Kill, Field(discriminator="type")]]):
    """A text message of an attached client."""


class HalfClose(Strict):
    """No more bytes from this side."""

    eof: Literal[True]


class MakeDirectory(Strict):
    path: PathText
    parents: bool = False
    mode: str | None = Field(None, pattern="^[0-7]{1,4}$", description="Octal; default: 777 less the umask")
    user: str | None = Field(None, description=ACTS)


class Move(Strict):
    path: PathText
    to: PathText
    overwrite: bool = False
    user: str | None = Field(None, description=ACTS)


# What is answered: for the OpenAPI document. The answers are built by hand, so none is checked twice.


class ExecResult(BaseModel):
    returncode: int = Field(description="Its exit code; -n where signal n ended it")
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool = Field(description="There was more output than `max_output`")
    duration: float = Field(description="Seconds, measured inside the sandbox")


class Started(BaseModel):
    id: str
    pid: int


class ProcessRow(BaseModel):
    id: str
    pid: int
    argv: list[str]
    started_at: float
    running: bool
    returncode: int | None


class Processes(BaseModel):
    processes: list[ProcessRow]


class Waited(BaseModel):
    running: bool
    returncode: int | None
    timed_out: bool
    duration: float | None = Field(description="Seconds; null while it runs")


class StdinOffset(BaseModel):
    offset: int = Field(description="Bytes of input that the process has")


class Written(BaseModel):
    size: int


class Unpacked(BaseModel):
    files: int
    bytes: int


class EntryModel(BaseModel):
    name: PathText
    path: PathText
    kind: Literal["file", "dir", "link", "other"]
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: PathText | None


class Entries(BaseModel):
    entries: list[EntryModel]


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry as it travels."""
    return {
        "name": path_json(entry.name),
        "path": path_json(entry.path),
        "kind": entry.kind,
        "size": entry.size,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "target": None if entry.target is None else path_json(entry.target),
    }


def path_json(path: str) -> str | dict[str, str]:
    """A path as it travels: a string, or base64 where it is not UTF-8."""
    if path.isascii():
        return path
    raw = path.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(raw).decode("ascii")}


def mode_of(octal: str | None) -> int | None:
    """A file's mode, out of its octal digits."""
    return None if octal is None else int(octal, 8)
