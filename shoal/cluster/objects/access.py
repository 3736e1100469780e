"""How the storage is reached: from the settings, with the credentials that are meant there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shoal.actors.objects import ObjectAccess, ObjectStore
from shoal.cluster.objects.keys import Keys, read_keys
from shoal.model.settings import ObjectSettings


@dataclass(frozen=True, slots=True)
class S3Access(ObjectAccess):
    """A bucket. `endpoint` None: AWS; `credentials`: a file on the machine that connects; neither that nor `keys`:
    boto3's usual chain. `timeout_s`: for an answer; `parts`: large objects are sent in parts, several at once."""

    bucket: str
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False
    ca: str | None = None
    credentials: str | None = None
    keys: Keys | None = None
    prefix: str = ""
    timeout_s: float = 20.0
    parts: bool = True

    def connect(self) -> ObjectStore:
        # Here: boto3 takes a fifth of a second and 30 MB, which a node that stores nothing shall not pay.
        from shoal.cluster.objects.s3 import S3Store, make_client

        keys = self.keys if self.credentials is None else read_keys(Path(self.credentials))
        client = make_client(self.endpoint, self.region, self.path_style, self.ca, keys, self.timeout_s)
        return S3Store(client, self.bucket, self.prefix, parts=self.parts)


def access_by_settings(settings: ObjectSettings) -> S3Access:
    """The access to the bucket that the settings name."""
    assert settings.bucket is not None
    prefix = settings.prefix.rstrip("/")
    return S3Access(
        bucket=settings.bucket,
        endpoint=None if settings.endpoint is None else settings.endpoint.rstrip("/"),
        region=settings.region,
        path_style=settings.endpoint is not None if settings.path_style is None else settings.path_style,
        ca=None if settings.ca is None else str(settings.ca),
        credentials=None if settings.credentials is None else str(settings.credentials),
        prefix=f"{prefix}/" if prefix else "",
        timeout_s=settings.timeout,
    )
