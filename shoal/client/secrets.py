"""`Secret`: values that a sandbox gets, and that nothing else tells."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.client.arguments import environment_of
from shoal.client.cluster import Client, current
from shoal.client.dual_method import dual_function
from shoal.client.html import Listed
from shoal.model import verbs
from shoal.model.errors import InvalidRequest
from shoal.model.options import mapping
from shoal.model.secrets import SecretInfo, SecretUse, check_use, check_values
from shoal.model.validate import check_name

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(.*)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


class Secret:
    """A secret to give to a sandbox: `Sandbox.create(secrets=[Secret.from_name("openai")])`.

    Its values are environment variables of every process there, or files (`as_files`). They are not in the sandbox's
    `info`, in logs, events, images or snapshots. `from_name` uses one that is stored in the cluster (`Secret.create`,
    `shoal secret create`); the others give values to this sandbox only.
    """

    def __init__(self, use: SecretUse) -> None:
        # For `from_name`, `from_dict` and their like.
        check_use("secrets", use)
        self._use = use

    # Which one

    @staticmethod
    def from_name(name: str, *, required_keys: Sequence[str] = ()) -> Secret:
        """The stored secret of that name, in the sandbox's environment. A create raises `SecretNotFound` where there is
        none, or where it lacks one of `required_keys`."""
        return Secret(SecretUse(name=name, keys=tuple(required_keys)))

    @staticmethod
    def from_dict(values: Mapping[str, str | None]) -> Secret:
        """These values, for one sandbox only. Those that are None are left out."""
        if not isinstance(values, Mapping):
            raise InvalidRequest(f"values: {type(values).__name__} is no mapping; give a dict", field="values")
        given = {key: value for key, value in values.items() if value is not None}
        check_values("values", given)
        return Secret(SecretUse(keys=tuple(sorted(given)), values=given))

    @staticmethod
    def from_local_environ(names: Sequence[str]) -> Secret:
        """The values of these environment variables of this process."""
        if isinstance(names, str):
            raise InvalidRequest(f"names: it is one string; give a list, such as [{names!r:.80}]", field="names")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise InvalidRequest(f"names: {missing[0]!r} is not set here; set it", field="names")
        return Secret.from_dict({name: os.environ[name] for name in names})

    @staticmethod
    def from_dotenv(path: str | os.PathLike[str] = ".env") -> Secret:
        """The values in a file of lines `KEY=value`; a directory stands for the file `.env` in it."""
        return Secret.from_dict(read_dotenv(path))

    def as_files(self, directory: str | os.PathLike[str] = "/run/secrets") -> Secret:
        """The same as files in a directory of the sandbox's, each named by its key, rather than as variables. The
        directory is in memory, and only the sandbox's user reads it."""
        return Secret(replace(self._use, directory=os.fspath(directory)))

    # Those that are stored

    @dual_function
    @staticmethod
    async def create(
        name: str,
        values: Mapping[str, str],
        *,
        replace: bool = False,
        environment: str | None = None,
        client: Client | None = None,
    ) -> Secret:
        """Stores values by a name in an environment (None: the token's); `replace`: in place of one of that name.
        Nothing reads them back. Needs a token of scope `admin`. Raises `AlreadyExists`."""
        check_name("name", name)
        given = mapping("values", values)
        check_values("values", given)
        client = client or await current()
        where = await environment_of(client, environment)
        await client.transport.ask(verbs.create_secret, name, given, where, replace)
        return Secret.from_name(name)

    @dual_function
    @staticmethod
    async def list(*, environment: str | None = None, client: Client | None = None) -> Sequence[SecretInfo]:
        """The stored secrets of an environment, or (None) all that you may see: names, keys and times."""
        if environment is not None:
            check_name("environment", environment)
        client = client or await current()
        return Listed(await client.transport.ask(verbs.secrets, environment), "name environment keys created_at")

    @dual_function
    @staticmethod
    async def delete(name: str, *, environment: str | None = None, client: Client | None = None) -> None:
        """Deletes a stored secret; `SecretNotFound`. Sandboxes that run keep its values."""
        check_name("name", name)
        client = client or await current()
        await client.transport.ask(verbs.delete_secret, name, await environment_of(client, environment))

    @property
    def name(self) -> str | None:
        """Of a stored one."""
        return self._use.name

    def __repr__(self) -> str:
        of = f"keys {', '.join(self._use.keys)}" if self._use.name is None else repr(self._use.name)
        return f"<Secret {of}>"


def uses_of(secrets: Any) -> Any:
    """What a spec has for the secrets that a caller gave."""
    if isinstance(secrets, Secret):
        return (secrets._use,)
    if not isinstance(secrets, list | tuple):
        return secrets
    return tuple(each._use if isinstance(each, Secret) else each for each in secrets)


def read_dotenv(path: str | os.PathLike[str]) -> dict[str, str]:
    """The values in a file of lines `KEY=value`. A value may be in quotes: in single ones it is taken as it is, in
    double ones `\\n`, `\\"` and `\\\\` are escapes; either may go over several lines. `export` before, and comments
    after ` #`, are left out; nothing is expanded. Raises `InvalidRequest`, which names the line."""
    file = Path(path)
    if file.is_dir():
        file = file / ".env"
    try:
        return parse_dotenv(file.read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"path: {file}: {getattr(error, 'strerror', None) or error}", field="path") from None


def parse_dotenv(text: str, name: str) -> dict[str, str]:
    """The same of a text. `name`: of where it is from."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InvalidRequest(f"path: {name}: line {number} is no KEY=value", field="path")
        key, value = match[1], match[2]
        quote = value[:1]
        if quote not in ("'", '"'):
            found[key] = re.split(r"\s#", value, maxsplit=1)[0].strip() if not value.startswith("#") else ""
            continue
        while (end := _end_of_quotes(value)) < 0:
            if at == len(lines):
                raise InvalidRequest(f"path: {name}: line {number}: its quotes do not end", field="path")
            value = f"{value}\n{lines[at]}"
            at += 1
        rest = value[end + 1 :].strip()
        if rest and not rest.startswith("#"):
            raise InvalidRequest(f"path: {name}: line {number}: something follows its quotes", field="path")
        inner = value[1:end]
        found[key] = inner if quote == "'" else re.sub(r"\\(.)", _unescaped, inner)
    return found


def _end_of_quotes(value: str) -> int:
    """Where the quotes that a value begins with end; -1 where they do not."""
    if value[0] == "'":
        return value.find("'", 1)
    at = 1
    while at < len(value):
        if value[at] == "\\":
            at += 1
        elif value[at] == '"':
            return at
        at += 1
    return -1


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[1], found[1] if found[1] in "\\\"$'" else found[0])
