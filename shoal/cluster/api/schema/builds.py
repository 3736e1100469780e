"""The JSON of builds of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, get_type_hints

from fastapi import Path
from pydantic import Field, create_model

from shoal.cluster.api.schema.control import Sent, Told
from shoal.model.builds import LONGEST_LOOK_S, MOST_TIMEOUT_S, BuildOptions, BuildState
from shoal.model.field_types import Name, Secrets
from shoal.model.recipe import KINDS, MOST_STEPS, Recipe, Step
from shoal.model.secrets import SecretUse

BuildId = Annotated[
    str, Path(description="The build's id.", pattern="^bd-[0-9a-z]{1,32}$", examples=["bd-2fq7c3j5kx6n4a7b"])
]
Digest = Annotated[str, Path(description="SHA-256 of the archive, in hexadecimal.", pattern="^[0-9a-f]{64}$")]
LogWait = Annotated[float, Field(ge=0, le=LONGEST_LOOK_S)]

_WORDS = Annotated[list[Annotated[str, Field(max_length=131_071)]], Field(max_length=4096)]
_PAIRS = Annotated[dict[str, str], Field(max_length=4096)]
_TYPES: Mapping[Any, Any] = {tuple[str, ...]: _WORDS, Mapping[str, str]: _PAIRS, tuple[SecretUse, ...]: Secrets}


def _members(kind: type[Step]) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind)
    for each in fields(kind):
        hint = _TYPES.get(hints[each.name], hints[each.name])
        if each.default_factory is not MISSING:
            yield each.name, (hint, Field(default_factory=each.default_factory))
        elif each.default is MISSING:
            yield each.name, (hint, ...)
        else:
            yield each.name, (hint, list(each.default) if isinstance(each.default, tuple) else each.default)


def _model(kind: type[Step]) -> Any:
    members: dict[str, Any] = {"step": (Literal[kind.kind], ...), **dict(_members(kind))}
    return create_model(f"Step{kind.kind.capitalize()}", __base__=Sent, __doc__=kind.__doc__, **members)


_STEP: Any = Annotated[reduce(or_, map(_model, KINDS.values())), Field(discriminator="step")]
_STEPS: dict[str, Any] = {
    "steps": (
        Annotated[list[_STEP], Field(min_length=1, max_length=MOST_STEPS, fail_fast=True)],
        Field(examples=[[{"step": "run", "argv": ["/bin/sh", "-c", "pip install six"]}]]),
    )
}


class RecipeSent(create_model("_RecipeSent", __base__=Sent, **_STEPS)):  # type: ignore[misc]  # steps are the model's
    """What an image is made of: a base, and steps in order."""

    base: Annotated[str, Field(min_length=1, max_length=512, examples=["shoal/base"])]
    """What the `image` of a sandbox may be; `shoal/scratch` for no file at all"""


class BuildOptionsSent(Sent):
    """How to build."""

    timeout: Annotated[float, Field(gt=0, le=MOST_TIMEOUT_S)] = 1800.0
    """Seconds for all of it"""
    cpu: Annotated[float, Field(gt=0, le=1024)] | None = None
    """Cores of the sandboxes in which steps run; by default the cluster's"""
    memory: Annotated[int, Field(gt=0, le=1 << 24)] | None = None
    """Their MiB of memory"""
    disk: Annotated[int, Field(gt=0, le=1 << 24)] | None = None
    """MiB that a step may write"""
    network: Literal["default", "none"] = "default"
    force: bool = False
    """Use nothing that was built before"""


class BuildCreate(Sent):
    """An image to build."""

    recipe: RecipeSent
    environment: Name | None = None
    """The environment; by default the token's, or `main` for a token of all"""
    options: BuildOptionsSent = BuildOptionsSent()

    def parsed(self) -> tuple[Recipe, BuildOptions]:
        """The recipe, checked, and the options."""
        given = [{name: getattr(step, name) for name in type(step).model_fields} for step in self.recipe.steps]
        made = Recipe.from_dict({"base": self.recipe.base, "steps": given})
        return made, BuildOptions(**self.options.model_dump())


class ImagePush(Sent):
    """Where to send an image."""

    reference: Annotated[str, Field(min_length=1, max_length=512, examples=["registry.example.org/team/tests:1"])]
    environment: Name | None = None
    """Where the name in the path is looked up; by default the token's, or `main` for a token of all"""


class Pushed(Told):
    """An image that was sent."""

    reference: str
    digest: str
    """By which the registry knows it"""


class Build(Told):
    """A build of an image. Times in unix seconds."""

    id: str
    """Empty where there is nothing to follow: files are missing, or all was built before"""
    environment: str
    state: BuildState
    """`files`: send those that are `missing`, and ask again; `running`, `done`, `failed`"""
    steps: int
    step: int
    """So many steps are done"""
    cached: int
    """So many of them were done before"""
    missing: list[str]
    """Digests of files that the cluster does not have"""
    image: str | None
    """The id of what was built"""
    error: dict[str, Any] | None
    """Why it failed: `code`, `message`, `step`, `text`, `exit_code`, `log`"""
    started_at: float
    ended_at: float | None


class Builds(Told):
    """The builds that run and the last ones that ended, newest first."""

    builds: Sequence[Build]


class BuildLog(Told):
    """A part of a build's log."""

    text: str
    offset: int
    """Where the next part begins"""
    build: Build
