"""`BucketMount`: a bucket of a user's own as a directory of sandboxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.client.secrets import Secret
from shoal.model.errors import InvalidRequest
from shoal.model.mounts import MountSpec, check_mounts


@dataclass(frozen=True, slots=True)
class BucketMount:
    """A bucket of an S3 service, mounted as it is: `Sandbox.create(volumes={"/data": BucketMount("data")})`.

    `prefix`: only what is below that directory; `endpoint`: the service's URL, None for AWS; `region`: the bucket's;
    `secret`: credentials, with the keys `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and perhaps `AWS_SESSION_TOKEN`,
    which stay outside the sandbox; None for a bucket that is open to all.

    A file is in the bucket once it is closed. It is written from its beginning to its end: appending to one, or
    changing a part of it, is refused. See `docs/buckets.md`.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    secret: Secret | None = None
    read_only: bool = False
    region: str | None = None

    def mount_at(self, path: str) -> MountSpec:
        """As a spec has it."""
        given: Any = self.secret
        if not (given is None or isinstance(given, Secret)):
            raise InvalidRequest(
                f"volumes: a bucket's secret is {type(given).__name__}; give a Secret, such as Secret.from_name(…)",
                field="volumes",
            )
        mount = MountSpec(
            path,
            read_only=self.read_only,
            kind="bucket",
            bucket=self.bucket,
            prefix=self.prefix,
            endpoint=self.endpoint or "",
            region=self.region or "",
            secret=None if self.secret is None else self.secret._use,
        )
        check_mounts("volumes", [mount])
        return mount
