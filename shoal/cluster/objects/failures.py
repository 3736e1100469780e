"""What an error of boto3's means: one of Shoal's errors, which names the setting at fault if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error
from botocore import exceptions as boto

from shoal.model.errors import InvalidRequest, NotFound, PermissionDenied, ShoalError, Unavailable

_DENIED = {
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_OTHER_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
_NO_BUCKET = {"InvalidBucketName", "NoSuchBucket"}
_LATER = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "OperationAborted"}

_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.UnauthorizedSSOTokenError,
)
_AWAY = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    OSError,
)


@contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Raises Shoal's error for one of boto3's. `what`: the call, for the message."""
    try:
        yield
    except (boto.BotoCoreError, boto.ClientError, Boto3Error) as error:
        raise meaning(error, what) from error


def meaning(error: Exception, what: str) -> ShoalError:
    """The error that one of boto3's stands for."""
    error = _cause(error)
    if isinstance(error, boto.ClientError):
        return _refused(error, what)
    if isinstance(error, _NO_CREDENTIALS):
        return PermissionDenied(
            f"objects.credentials: there are none for the object storage ({error}); name a file with them, or give "
            "this machine a role",
            field="objects.credentials",
        )
    if isinstance(error, boto.SSLError):
        return InvalidRequest(
            f"objects.ca: the certificate of the object storage is not trusted here ({error}); name the file of the CA "
            "that has signed it",
            field="objects.ca",
        )
    if isinstance(error, _AWAY):
        return Unavailable(f"the object storage does not answer ({what}): {error}")
    if isinstance(error, boto.NoRegionError):
        return InvalidRequest(f"objects.region: {error}", field="objects.region")
    return InvalidRequest(f"objects.endpoint: the object storage cannot be used ({what}): {error}",
                          field="objects.endpoint")  # fmt: skip


def _refused(error: boto.ClientError, what: str) -> ShoalError:
    said = error.response.get("Error", {})
    code, status = str(said.get("Code", "")), int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    told = f"{code}: {said.get('Message', '')}"[:300]
    if code in _NO_BUCKET:
        return InvalidRequest(f"objects.bucket: there is no such bucket ({told})", field="objects.bucket")
    if code in _OTHER_REGION or status in (301, 307):
        return InvalidRequest(f"objects.region: the bucket is in another region ({told})", field="objects.region")
    if code in _DENIED or status in (401, 403):
        return PermissionDenied(
            f"objects.credentials: the object storage refuses them ({what}: {told})", field="objects.credentials"
        )
    if status == 404:
        return NotFound(f"{what}: there is no such object")
    if code in _LATER or status >= 500 or status == 429:
        return Unavailable(f"the object storage does not serve now ({what}: {told})")
    return InvalidRequest(f"objects.endpoint: the object storage refuses the call ({what}: {status} {told})",
                          field="objects.endpoint")  # fmt: skip


def _cause(error: Exception) -> Exception:
    """Of a transfer that failed, what it failed by."""
    while isinstance(error, Boto3Error):
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, Exception):
            break
        error = inner
    return error
