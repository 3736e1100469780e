"""Credentials for AWS's registries, by boto3's usual chain: environment, files, the machine's role."""

from __future__ import annotations

import base64
import re

from shoal.model.errors import Unavailable

_HOST = re.compile(r"(?P<account>[0-9]{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/")


def login(reference: str) -> tuple[str, str] | None:
    """User name and password for the registry of a reference, good for hours; None if it is not one of AWS's, or boto3
    is not installed: then Docker's configuration counts. `Unavailable` if AWS gives none."""
    host = _HOST.match(reference)
    if host is None:
        return None
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    try:
        answer = boto3.client("ecr", region_name=host["region"]).get_authorization_token()
        token = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
    except (BotoCoreError, ClientError, LookupError, ValueError) as error:
        raise Unavailable(f"AWS gives no access to the registry of {reference}: {error}") from error
    username, _, password = token.partition(":")
    return username, password
