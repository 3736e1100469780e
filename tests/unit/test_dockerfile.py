"""Dockerfiles as recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.client.image.dockerfile import parse
from shoal.client.image.ignore import Ignore
from shoal.client.image.instructions import Instruction, instructions
from shoal.client.image.local_files import LocalFiles
from shoal.client.image.stage_copy import StageCopy
from shoal.model.errors import InvalidRequest
from shoal.model.recipe import SCRATCH, Run, SetCommand, SetEntrypoint, SetEnv, SetLabels, SetUser, SetWorkdir
from shoal.model.secrets import SecretUse


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print(1)")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    return tmp_path


def steps(text: str, context: Path, **args: str) -> list[Any]:
    return list(parse(text, context, args, Ignore()).steps)


def plain(step: Any) -> Any:
    """The step without its title."""
    return type(step)(**{**{name: getattr(step, name) for name in step.__slots__}, "title": ""})


def shell(line: str, **env: str) -> Run:
    return Run(("/bin/sh", "-c", line), env)


def test_the_usual_file(context: Path) -> None:
    found = steps(
        """\
# syntax=docker/dockerfile:1
ARG VERSION=3.11
FROM python:${VERSION}-slim AS base
# a comment
ENV LANG=C.UTF-8 PATH="/opt/venv/bin:$PATH"
WORKDIR /srv
COPY src ./app
RUN apt-get update \\
    # amid it
    && apt-get install -y git
RUN ["pip", "install", "six"]
LABEL who="the team" "two words"=x
USER nobody
CMD ["main.py"]
EXPOSE 80
ENTRYPOINT ["python3"]
""",
        context,
    )
    copy = found.pop(2)
    assert isinstance(copy, LocalFiles)
    assert (copy.sources, copy.path) == (((context / "src", ""),), "/srv/app")
    assert [plain(step) for step in found] == [
        SetEnv({"LANG": "C.UTF-8", "PATH": "/opt/venv/bin:${PATH}"}, expand=True),
        SetWorkdir("/srv"),
        shell("apt-get update     && apt-get install -y git"),
        Run(("pip", "install", "six")),
        SetLabels({"who": "the team", "two words": "x"}),
        SetUser("nobody"),
        SetEntrypoint(("python3",)),
        SetCommand(("main.py",)),
    ]
    assert parse("ARG V=1\nFROM a:$V", context, {"V": "2"}, Ignore()).base == "a:2"
    assert parse("FROM scratch", context, {}, Ignore()).base == SCRATCH


def test_arguments_are_variables_of_commands_and_of_nothing_after(context: Path) -> None:
    text = "ARG G=7\nFROM x\nRUN a\nARG G\nARG NAME=me\nENV HOME=/$NAME\nRUN b\nENV NAME=env\nRUN c\n"
    first, env, second, _, third = steps(text, context, NAME="you")
    assert plain(first) == shell("a")
    assert env.variables == {"HOME": "/you"}
    assert plain(second) == shell("b", G="7", NAME="you")
    assert plain(third) == shell("c", G="7")


@pytest.mark.parametrize(
    ("line", "variables", "expand"),
    [
        ("ENV A one  two", {"A": "one  two"}, False),
        ("ENV A=1 B='$X $Y'", {"A": "1", "B": "$X $Y"}, False),
        ("ENV A=\\$B", {"A": "$B"}, False),
        ("ENV A=$K B=$HOME/x C='$5'", {"A": "v", "B": "${HOME}/x", "C": "$$5"}, True),
        ('ENV A="x ${K} y" B=${NO:-d} C=${K:+set} D=${NO+set}', {"A": "x v y", "B": "d", "C": "set", "D": ""}, False),
        ('ENV A=""', {"A": ""}, False),
    ],
)
def test_variables_in_values(line: str, variables: dict[str, str], expand: bool, context: Path) -> None:
    *_, found = steps(f"FROM x\nENV K=v\n{line}", context)
    assert (found.variables, found.expand) == (variables, expand)


def test_here_documents_and_shells(context: Path) -> None:
    text = 'FROM x\nRUN <<EOF\nset -e\necho $A\nEOF\nSHELL ["/bin/bash", "-ec"]\n'
    text += "RUN cat <<-END > /f\n\thi\n\tEND\nCMD run me\n"
    first, second, command = steps(text, context)
    assert plain(first) == shell("set -e\necho $A\n")
    assert plain(second) == Run(("/bin/bash", "-ec", "cat <<END > /f\nhi\nEND\n"))
    assert command.argv == ("/bin/bash", "-ec", "run me")


@pytest.mark.parametrize(
    ("line", "sources", "path"),
    [
        ("COPY a.txt /x/y.txt", ["a.txt:y.txt"], "/x"),
        ("COPY a.txt /x/", ["a.txt:a.txt"], "/x"),
        ("COPY *.txt /x/", ["a.txt:a.txt", "b.txt:b.txt"], "/x"),
        ('COPY ["a.txt", "/with space"]', ["a.txt:with space"], "/"),
        ("COPY . .", [".:"], "/w"),
        ("ADD src a.txt ./", ["src:", "a.txt:a.txt"], "/w"),
        ("COPY ../../a.txt /x/", ["a.txt:a.txt"], "/x"),
    ],
)
def test_what_is_copied_where(line: str, sources: list[str], path: str, context: Path) -> None:
    _, found = steps(f"FROM x\nWORKDIR /w\n{line}", context)
    assert isinstance(found, LocalFiles)
    assert [f"{source.relative_to(context)}:{name}" for source, name in found.sources] == sources
    assert found.path == path


def test_owner_and_mode_of_copies(context: Path) -> None:
    (found,) = steps("FROM x\nCOPY --chown=app:app --chmod=755 --link a.txt /", context)
    assert (found.owner, found.mode) == ("app:app", 0o755)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("RUN a\nFROM x", 1),
        ("FROM x y", 1),
        ("FROM $NO", 1),
        ("FROM x\n\nCOPY --from=1 /a /b", 3),
        ("FROM x\nCOPY --from=0 /a /b", 2),
        ("FROM x\nCOPY --from=y /a*/b /c", 2),
        ("FROM x\nCOPY --from=$NO /a /b", 2),
        ("FROM x\nADD --from=y /a /b", 2),
        ("FROM x\nRUN --mount=type=secret a", 2),
        ("FROM x\nRUN --mount=type=secret,id=s,required=true a", 2),
        ("FROM x\nRUN --mount=type=secret,id=s,mode=0400 a", 2),
        ("FROM x\nRUN --mount=type=bind,target=/x a", 2),
        ("FROM x\nRUN --network=none a", 2),
        ("FROM x\nADD https://example.com/a /a", 2),
        ("FROM x\nONBUILD RUN a", 2),
        ("FROM x\nCOPY none /a", 2),
        ("FROM x\nCOPY a.txt", 2),
        ("FROM x\nCOPY --chmod=u+x a.txt /a", 2),
        ("FROM x\nWORKDIR $HOME/x", 2),
        ("FROM x\nENV A", 2),
        ("FROM x\nENV A='b", 2),
        ("FROM x\nSHELL bash", 2),
        ("FROM x\nRUN <<EOF\na", 2),
        ("FROM x\nRUN", 2),
        ("FROM x\nFLY away", 2),
    ],
)
def test_what_is_not_supported_is_refused_with_its_line(text: str, line: int, context: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text, context, {}, Ignore())
    assert (caught.value.field, caught.value.fields["line"]) == ("dockerfile", line)


def test_links_out_of_the_context_and_unknown_arguments_are_refused(context: Path) -> None:
    (context / "out").symlink_to("/etc")
    with pytest.raises(InvalidRequest):
        steps("FROM x\nCOPY out /a", context)
    with pytest.raises(InvalidRequest) as caught:
        steps("FROM x", context, TYPO="1")
    assert caught.value.field == "args"
    with pytest.raises(InvalidRequest):
        steps("", context)


def test_another_escape_character() -> None:
    found = list(instructions("FROM x\nRUN a `\n  b\n", "`"))
    assert found == [Instruction(1, "FROM", "x"), Instruction(2, "RUN", "a   b")]


def test_stages_go_on_from_each_other_and_give_files(context: Path) -> None:
    text = """\
ARG PYTHON=3.11
FROM python:$PYTHON AS build
ENV A=1
WORKDIR /src
RUN make
CMD ["sh"]
FROM build AS tested
RUN test
FROM scratch
COPY --from=BUILD --chown=7:7 --chmod=755 /src/out/* bin/
COPY --from=0 x y
COPY --from=ghcr.io/org/tool:1 /tool /tool
COPY a.txt /
"""
    parsed = parse(text, context, {}, Ignore())
    first, second, other, local = parsed.steps
    assert parsed.base == SCRATCH
    assert isinstance(first, StageCopy)
    assert isinstance(second, StageCopy)
    assert isinstance(other, StageCopy)
    assert isinstance(local, LocalFiles)
    assert first.base == "python:3.11"
    assert [type(step) for step in first.steps] == [SetEnv, SetWorkdir, Run, SetCommand]
    assert (first.sources, first.path, first.into) == (("/src/out/*",), "/bin", True)
    assert (first.owner, first.mode) == ("7:7", "755")
    assert (second.sources, second.path, second.into) == (("/x",), "/y", False)
    assert (other.base, other.steps, other.path) == ("ghcr.io/org/tool:1", (), "/tool")

    tested = parse(text, context, {}, Ignore(), target="tested")
    assert tested.base == "python:3.11"
    assert [plain(step) for step in tested.steps if isinstance(step, Run)] == [shell("make"), shell("test")]
    assert tested.steps[-1] == first.steps[-1], "its command is that of the stage before"
    with pytest.raises(InvalidRequest) as caught:
        parse(text, context, {}, Ignore(), target="other")
    assert caught.value.field == "target"


def test_secrets_of_mounts(context: Path) -> None:
    tokens = SecretUse(name="tokens", keys=("pip", "npmrc", "TOKEN"))
    secrets = {"pip": tokens, "npm": tokens, "t": tokens}
    text = (
        "FROM x\nRUN --mount=type=secret,id=pip --mount=type=secret,id=npm,target=/root/.conf/npmrc "
        "--mount=type=secret,id=t,env=TOKEN --mount=type=cache,target=/c --mount=type=secret,id=absent a"
    )
    (run,) = parse(text, context, {}, Ignore(), secrets=secrets).steps
    assert isinstance(run, Run)
    assert [use.directory for use in run.secrets] == ["/run/secrets", "/root/.conf", None]
    (run,) = parse("FROM x\nRUN --mount=type=secret,id=s a", context, {}, Ignore(), secrets={"s": SecretUse("n")}).steps
    assert isinstance(run, Run)
    assert run.secrets == (SecretUse("n", ("s",), "/run/secrets"),), "the cluster finds out whether it has that key"
    for wrong in ("id=pip,target=/x/other", "id=npm"):  # no key of the secret's is called so
        with pytest.raises(InvalidRequest) as caught:
            parse(f"FROM x\nRUN --mount=type=secret,{wrong} a", context, {}, Ignore(), secrets=secrets)
        assert (caught.value.field, caught.value.fields["line"]) == ("dockerfile", 2)
    with pytest.raises(InvalidRequest) as caught:
        parse("FROM x", context, {}, Ignore(), secrets=secrets)
    assert caught.value.field == "secrets"
