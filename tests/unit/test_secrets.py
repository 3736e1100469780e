"""Secrets: what is one, how they are encrypted, stored, and given to sandboxes."""

from __future__ import annotations

import base64
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.actors.controller.secret_keys import SecretKeys, key_id
from shoal.client.secrets import parse_dotenv
from shoal.model.access import INSIDE, Caller, Scope
from shoal.model.errors import AlreadyExists, FailedPrecondition, InvalidRequest, SecretNotFound, ShoalError
from shoal.model.options import options_of, spec_of
from shoal.model.pools import check_pool_spec
from shoal.model.recipe import Recipe, Run, keys_of
from shoal.model.secrets import MOST_BYTES, SecretUse, SecretValues, check_uses, secret_uses
from shoal.model.spec import SandboxSpec
from shoal.model.spec_model import check_spec
from tests.unit.builders import spec
from tests.unit.controller_world import Controller, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

CANARY = "canary-5d1f"
INLINE = SecretUse(keys=("TOKEN",), values={"TOKEN": CANARY})


# What is one


@pytest.mark.parametrize(
    "given",
    [
        7,
        {"values": {"A": CANARY}},
        [7],
        [{}],
        [{"name": "a", "values": {"A": CANARY}}],
        [{"name": "a b"}],
        [{"values": CANARY}],
        [{"values": {"A": [CANARY]}}],
        [{"values": {"A-B=": CANARY}}],
        [{"values": {"A": CANARY + "\0"}}],
        [{"values": {"A": CANARY * MOST_BYTES}}],
        [{"values": {}}],
        [{"name": "a", "sealed": CANARY}],
        [{"name": "a", "keys": "A"}],
        [{"name": "a", "directory": "run"}],
        [{"name": "a", "directory": "/run/../etc"}],
        [{"name": "a", "directory": "/proc/1"}],
        [{"name": "a", "directory": "/"}],
        [{"name": "a"}] * 100,
    ],
)
def test_what_is_none_is_refused_and_not_shown(given: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_uses("secrets", secret_uses(given))
    assert CANARY not in str(caught.value.to_dict())


def test_a_spec_tells_names_and_keys_only() -> None:
    whole = spec(secrets=(SecretUse("openai"), INLINE, SecretUse("db", ("URL",), "/run/secrets")))
    check_spec(whole, None)
    assert CANARY not in repr(whole)
    told = spec_of(options_of(replace(whole, secrets=tuple(use.told() for use in whole.secrets))))
    assert told.secrets == (SecretUse("openai"), SecretUse(keys=("TOKEN",)), whole.secrets[2])
    assert whole.container_shape.memory_directories == ("/run/secrets",)
    with pytest.raises(InvalidRequest):
        check_pool_spec(spec(secrets=(INLINE,)))
    check_pool_spec(spec(secrets=(SecretUse("openai"),)))


def test_sources_of_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HERE", "1")
    assert shoal.Secret.from_local_environ(["HERE"])._use.values == {"HERE": "1"}
    with pytest.raises(InvalidRequest):
        shoal.Secret.from_local_environ(["NOT_HERE"])
    (tmp_path / ".env").write_text("A=1\n")
    assert shoal.Secret.from_dotenv(tmp_path)._use.values == {"A": "1"}
    assert CANARY not in repr(shoal.Secret.from_dict({"A": CANARY}))
    assert shoal.Secret.from_dict({"A": CANARY}).as_files("/x")._use.directory == "/x"


def test_dotenv() -> None:
    text = "# c\nexport A=1\nB = two words # c\nC='a # \\n'\nD=\"x\\n\\\"y\\\"\" # c\nE=\nF=a#b\nG='over\nlines'\n"
    assert parse_dotenv(text, ".env") == {
        "A": "1",
        "B": "two words",
        "C": "a # \\n",
        "D": 'x\n"y"',
        "E": "",
        "F": "a#b",
        "G": "over\nlines",
    }
    for wrong in ("A", "1A=2", "A='x", "A='x' y"):
        with pytest.raises(InvalidRequest):
            parse_dotenv(f"OK={CANARY}\n{wrong}", ".env")


# Encryption


async def test_keys_rotate_and_bind_to_their_context(tmp_path: Path) -> None:
    file = tmp_path / "secrets.keys"
    keys = SecretKeys(file)
    await keys.load(may_make=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    old = keys.seal(b"value", "main/a")
    assert b"value" not in old.encode()
    await keys.renew()
    new = keys.seal(b"value", "main/a")
    assert key_id(old) != key_id(new)
    again = SecretKeys(file)
    await again.load(may_make=False)
    assert (again.unseal(old, "main/a"), again.unseal(new, "main/a")) == (b"value", b"value")
    for sealed, context in ((new, "team/a"), (new[:-8] + "AAAAAAA=", "main/a"), ("1.none.AAAA", "main/a")):
        with pytest.raises(FailedPrecondition):
            again.unseal(sealed, context)


async def test_a_key_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await SecretKeys(tmp_path / "secrets.keys").load(may_make=False)
    assert caught.value.state == "no_key"
    assert _names_in(tmp_path) == []


async def test_keys_by_a_command(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.write_text(base64.b64encode(b"a" * 32).decode() + "\n")
    keys = SecretKeys(tmp_path / "unused", f"cat {told}")
    await keys.load(may_make=False)
    sealed = keys.seal(b"value", "c")
    told.write_text(base64.b64encode(b"b" * 32).decode() + "\n")
    await keys.renew()
    assert (keys.unseal(sealed, "c"), key_id(keys.seal(b"", "c")) != key_id(sealed)) == (b"value", True)
    for command in ("false", "/not/there", f"echo {CANARY}"):
        with pytest.raises(FailedPrecondition) as caught:
            await SecretKeys(tmp_path / "unused", command).load(may_make=False)
        assert caught.value.state == "no_key"


def _names_in(directory: Path) -> list[str]:
    return [each.name for each in directory.iterdir()]


# The controller


def _world(tmp_path: Path) -> World:
    return World(room=20, settings={"state_dir": str(tmp_path), "pools": {"idle_slots": 0, "ready": 0}})


async def _store(controller: Controller, name: str, values: dict[str, str], **options: Any) -> Any:
    environment, again = options.get("environment", "main"), options.get("replace", False)
    return await controller.parts.secrets.create(name, values, environment, again, options.get("by", INSIDE))


async def _made(controller: Controller, wanted: SandboxSpec) -> str:
    info, _ = await controller.parts.sandboxes.create(wanted, 10.0, True, INSIDE)
    assert CANARY not in repr(info)
    return info.id


async def test_from_its_storing_to_its_end(tmp_path: Path) -> None:
    world = _world(tmp_path)
    controller = await world.controller()
    secrets = controller.parts.secrets
    first = await _store(controller, "openai", {"KEY": CANARY})
    with pytest.raises(AlreadyExists):
        await _store(controller, "openai", {"KEY": "x"})
    second = await _store(controller, "openai", {"KEY": CANARY, "MORE": "m"}, replace=True)
    assert (first.version, second.version, second.keys, second.created_at) == (1, 2, ("KEY", "MORE"), first.created_at)
    outsider = Caller("tk-x", "team", Scope.ADMIN)
    assert (secrets.secrets(None, INSIDE), secrets.secrets(None, outsider)) == ([second], [])
    with pytest.raises(ShoalError):
        secrets.secret("openai", "main", outsider)
    assert CANARY not in repr(world.disk)
    await controller.kill()
    controller = await world.controller()
    sandbox = await _made(controller, spec(secrets=(SecretUse("openai", ("KEY",)),)))
    assert world.told_secrets[sandbox] == SecretValues({"KEY": CANARY, "MORE": "m"})
    await controller.parts.secrets.delete("openai", "main", INSIDE)
    assert world.disk.secrets == {}
    with pytest.raises(SecretNotFound):
        await _made(controller, spec(secrets=(SecretUse("openai"),)))
    actions = [entry.action for entry in world.disk.audit]
    assert [each for each in actions if each.startswith("secret.")] == ["secret.create"] * 2 + ["secret.delete"]
    await controller.kill()


async def test_a_missing_secret_or_key_is_told_at_the_create(tmp_path: Path) -> None:
    world = _world(tmp_path)
    controller = await world.controller()
    await _store(controller, "db", {"URL": "x"})
    for use in (SecretUse("none"), SecretUse("db", ("PASSWORD",))):
        with pytest.raises(SecretNotFound) as caught:
            await _made(controller, spec(secrets=(use,)))
        assert caught.value.field == "secrets"
        with pytest.raises(SecretNotFound):
            await controller.parts.declared_pools.create("p", spec(secrets=(use,)), 1, 1, False, INSIDE)
    assert controller.parts.registry.live() == []
    await controller.kill()


async def test_inline_values_are_encrypted_before_they_are_kept(tmp_path: Path) -> None:
    world = _world(tmp_path)
    controller = await world.controller()
    wanted = spec(secrets=(INLINE, replace(INLINE, directory="/run/secrets")), idempotency_key="k", persistent=True)
    wanted = replace(wanted, timeout=None)
    sandbox = await _made(controller, wanted)
    expected = SecretValues({"TOKEN": CANARY}, {"/run/secrets": {"TOKEN": CANARY}})
    assert world.told_secrets[sandbox] == expected
    assert await _made(controller, wanted) == sandbox  # the same again
    other = replace(wanted, secrets=(replace(INLINE, values={"TOKEN": "other"}), wanted.secrets[1]))
    with pytest.raises(InvalidRequest):
        await _made(controller, other)
    assert CANARY not in json.dumps(world.disk.rows()) + repr(world.disk)
    # They come again from what is on record, also after all was encrypted anew.
    before = world.disk.row(sandbox)["spec"]["secrets"][0]["sealed"]
    await controller.parts.secrets.rotate(INSIDE)
    assert world.disk.row(sandbox)["spec"]["secrets"][0]["sealed"] != before
    await controller.parts.starting.stop(sandbox, INSIDE)
    await controller.kill()
    controller = await world.controller()
    world.told_secrets.clear()
    await controller.parts.starting.start(sandbox, 10.0, INSIDE)
    assert world.told_secrets[sandbox] == expected
    await controller.parts.sandboxes.terminate(sandbox, INSIDE)
    assert world.disk.row(sandbox)["spec"]["secrets"][0]["sealed"] == ""
    await controller.kill()


async def test_secrets_go_with_their_environment(tmp_path: Path) -> None:
    world = _world(tmp_path)
    controller = await world.controller()
    await controller.parts.accounts.create_environment("team", shoal.Quota(), INSIDE)
    await _store(controller, "db", {"URL": CANARY}, environment="team")
    with pytest.raises(SecretNotFound):  # it is of another environment
        await _made(controller, spec(secrets=(SecretUse("db"),)))
    await controller.parts.accounts.delete_environment("team", INSIDE)
    assert (world.disk.secrets, controller.parts.secrets.secrets(None, INSIDE)) == ({}, [])
    await controller.kill()


async def test_a_private_image_is_its_environments(tmp_path: Path) -> None:
    world = _world(tmp_path)
    controller = await world.controller()
    await controller.parts.accounts.create_environment("team", shoal.Quota(), INSIDE)
    login = {"REGISTRY_USERNAME": "ann", "REGISTRY_PASSWORD": CANARY}
    await _store(controller, "hub", login, environment="team")
    pulls, reference = controller.parts.registry_pulls, "registry.example.org/team/tests:1"
    image = await pulls.pull(reference, "team", SecretUse("hub"), INSIDE)
    assert (image.environment, image.parent, world.pulls) == ("team", reference, [(reference, "ann", CANARY)])
    assert (await pulls.pull(reference, "team", SecretUse("hub"), INSIDE)).id == image.id
    assert len(world.pulls) == 1
    assert CANARY not in repr(world.disk)
    for use, error in ((SecretUse("hub"), SecretNotFound), (INLINE, InvalidRequest)):  # in another environment
        with pytest.raises(error):
            await pulls.pull(reference, "main", use, INSIDE)
    for named in (image.id, image.digest):
        with pytest.raises(ShoalError):
            await _made(controller, spec(image=named))
    await controller.kill()


def test_a_steps_key_knows_its_secrets_by_name_alone() -> None:
    def step(**use: Any) -> Run:
        return Run(("true",), secrets=(SecretUse(**use),))

    one, other = (step(keys=("TOKEN",), values={"TOKEN": value}) for value in (CANARY, "other"))
    sealed = step(keys=("TOKEN",), mark="m", sealed="1.k.x")
    keys = [keys_of("sha256:0", [each])[-1] for each in (one, other, sealed, step(name="hub"), Run(("true",)))]
    assert len(set(keys[:3])) == 1
    assert len(set(keys)) == 3
    travelled = Recipe.from_dict(Recipe("shoal/base", (one,)).to_dict())
    assert travelled.steps == (one,)
    with pytest.raises(InvalidRequest) as caught:
        Recipe.from_dict({"base": "b", "steps": [{"step": "run", "argv": ["true"], "secrets": [{"values": CANARY}]}]})
    assert CANARY not in str(caught.value.to_dict())


async def test_memory_with_secrets_is_not_taken(tmp_path: Path) -> None:
    world = _world(tmp_path)
    controller = await world.controller()
    sandbox = await _made(controller, spec(secrets=(INLINE,)))
    record = controller.parts.registry.get(sandbox)
    assert record is not None
    record.spec = replace(record.spec, runtime="runsc")
    with pytest.raises(FailedPrecondition) as caught:
        await controller.parts.snapshots.checkpoint(sandbox, None, None, INSIDE)
    assert caught.value.state == "secrets"
    await controller.kill()
