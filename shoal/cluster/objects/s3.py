"""The object storage contract over boto3."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from shoal.actors.objects import PIECE, ObjectInfo, ObjectStore
from shoal.cluster.objects.failures import meaning, s3_errors
from shoal.cluster.objects.keys import Keys
from shoal.model.errors import InvalidRequest, NotFound, Unavailable

_CONNECT_S = 5.0
_ATTEMPTS = 3
_CONNECTIONS = 16
_PART = 16 << 20
_MOST_DELETED = 1000
"""The most keys of one request, by S3."""

_TRANSFER = TransferConfig(multipart_threshold=4 * _PART, multipart_chunksize=_PART, max_concurrency=4)


class S3Store(ObjectStore):
    """A connection to a bucket. `prefix`: stands before every key; `parts`: large files are sent in parts, several at
    once."""

    def __init__(self, client: Any, bucket: str, prefix: str = "", *, parts: bool = True) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._parts = parts

    def check(self) -> None:
        with s3_errors(f"look into the bucket {self._bucket}"):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def put(self, key: str, content: bytes | Path, *, replace: bool = True) -> bool:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if not replace:
            there = self.head(key)
            if there is not None and there.size == size:
                return False
        with s3_errors(f"write {key}"):
            if isinstance(content, bytes):
                self._client.put_object(**self._named(key), Body=content)
            elif self._parts:
                self._client.upload_file(str(content), **self._named(key), Config=_TRANSFER)
            else:
                with content.open("rb") as file:
                    self._client.put_object(**self._named(key), Body=file)
        return True

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length == 0:
            return
        whole = start == 0 and length is None
        ranged = {} if whole else {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
        with s3_errors(f"read {key}"):
            try:
                body = self._client.get_object(**self._named(key), **ranged)["Body"]
            except self._client.exceptions.ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
                    return  # it begins at or behind the end
                raise
            with body:
                yield from body.iter_chunks(PIECE)

    def get(self, key: str, target: Path) -> int:
        info = self.head(key)
        if info is None:
            raise NotFound(f"there is no object {key}")
        failed = 0
        while True:
            have = target.stat().st_size if target.exists() else 0
            if have > info.size:
                raise InvalidRequest(f"{target} has {have} bytes, and {key} only {info.size}", field="target")
            if have == info.size and target.exists():
                return info.size
            try:
                self._append(key, target, have)
                grown = target.stat().st_size
                if grown == have and info.size > have:
                    raise Unavailable(f"{key} ended after {have} of {info.size} bytes")
            except Unavailable:
                grown = target.stat().st_size if target.exists() else 0
                failed = 1 if grown > have else failed + 1
                if failed >= _ATTEMPTS:
                    raise

    def _append(self, key: str, target: Path, have: int) -> None:
        with target.open("ab") as file:
            for piece in self.read(key, start=have):
                file.write(piece)

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with s3_errors(f"look at {key}"):
                said = self._client.head_object(**self._named(key))
        except NotFound:
            return None
        return ObjectInfo(key, int(said["ContentLength"]), said["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        own = self._prefix
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=own + prefix)
        with s3_errors(f"list {prefix}"):
            for page in pages:
                for each in page.get("Contents", ()):
                    yield ObjectInfo(each["Key"].removeprefix(own), int(each["Size"]), each["LastModified"].timestamp())

    def delete(self, keys: Iterable[str]) -> None:
        named = [{"Key": self._prefix + key} for key in keys]
        for first in range(0, len(named), _MOST_DELETED):
            batch = named[first : first + _MOST_DELETED]
            with s3_errors(f"delete {len(batch)} objects"):
                if len(batch) == 1:
                    self._client.delete_object(Bucket=self._bucket, **batch[0])
                    continue
                said = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
                failed: builtins.list[dict[str, Any]] = said.get("Errors", [])
                if failed:
                    told = {"Error": failed[0], "ResponseMetadata": {"HTTPStatusCode": 0}}
                    raise meaning(self._client.exceptions.ClientError(told, "DeleteObjects"), "delete objects")

    def close(self) -> None:
        self._client.close()

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}


def make_client(
    endpoint: str | None, region: str | None, path_style: bool, ca: str | None, keys: Keys | None, timeout_s: float
) -> Any:
    """A client of boto3's, which may be used by several threads. `keys` None: its usual chain of credentials."""
    if ca is not None and not Path(ca).is_file():
        raise InvalidRequest(f"objects.ca: there is no file {ca} on this machine", field="objects.ca")
    # Checksums in trailers are AWS's: other services keep them, and do not know what to do with them at a range.
    checksums = "when_supported" if endpoint is None else "when_required"
    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=timeout_s,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        s3={"addressing_style": "path" if path_style else "auto"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    with s3_errors("connect"):
        session = boto3.Session()
        return session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or session.region_name or "us-east-1",
            verify=ca,
            aws_access_key_id=None if keys is None else keys.access,
            aws_secret_access_key=None if keys is None else keys.secret,
            aws_session_token=None if keys is None else keys.session,
            config=config,
        )
