"""What a cluster does with an image of a registry that only lets in who has credentials, whatever its engine."""

from __future__ import annotations

import pytest

import shoal
from shoal.client.cluster import Client
from tests.registry import PRIVATE_PASSWORD, PRIVATE_USER, private_registry


def check_private_image(client: Client) -> None:
    def login(password: str) -> shoal.Secret:
        return shoal.Secret.from_dict({"REGISTRY_USERNAME": PRIVATE_USER, "REGISTRY_PASSWORD": password})

    with private_registry("team/tests", hello="private") as reference:
        with pytest.raises(shoal.ShoalError) as refused:
            shoal.Image.from_registry(reference, secret=login("guessed")).build(client=client)
        assert not refused.value.retryable
        assert "guessed" not in str(refused.value.to_dict())
        image = shoal.Image.from_registry(reference, secret=login(PRIVATE_PASSWORD))
        with shoal.Sandbox.create(image=image, client=client) as sandbox:
            assert sandbox.files.read_text("/hello") == "private"
        with pytest.raises(shoal.ShoalError):  # the reference alone opens nothing, although a node has the image
            shoal.Sandbox.create(image=reference, client=client)
    built = image.build(client=client)
    with shoal.Sandbox.create(image=built, client=client) as sandbox:  # nor is the registry needed any more
        assert sandbox.files.read_text("/hello") == "private"
    assert built.id is not None
    client.delete_image(built.id, when_unused=True)
