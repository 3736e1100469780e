"""What boto3 raises, as the errors of the contract. The codes are those of EC2's and AWS's common error lists."""

from __future__ import annotations

from collections.abc import Mapping

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from shoal.cluster.scaling.contract import (
    CloudError,
    Misconfigured,
    NoCapacity,
    QuotaReached,
    RegionDown,
    Throttled,
    Unauthorized,
)

_CODES: Mapping[type[CloudError], frozenset[str]] = {
    NoCapacity: frozenset(
        {
            "InsufficientInstanceCapacity",
            "InsufficientHostCapacity",
            "InsufficientCapacity",
            "InsufficientReservedInstanceCapacity",
            "InsufficientFreeAddressesInSubnet",
            "SpotMaxPriceTooLow",
            "Unsupported",  # the zone has no such instance type; another may have
        }
    ),
    QuotaReached: frozenset(
        {
            "InstanceLimitExceeded",
            "VcpuLimitExceeded",
            "MaxSpotInstanceCountExceeded",
            "VolumeLimitExceeded",
            "ResourceLimitExceeded",
            "ResourceCountExceeded",
        }
    ),
    Throttled: frozenset(
        {
            "RequestLimitExceeded",
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "EC2ThrottledException",
            "TooManyRequestsException",
            "BandwidthLimitExceeded",
        }
    ),
    Unauthorized: frozenset(
        {
            "AuthFailure",
            "UnauthorizedOperation",
            "AccessDenied",
            "AccessDeniedException",
            "ExpiredToken",
            "ExpiredTokenException",
            "RequestExpired",
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "MissingAuthenticationToken",
            "NotAuthorized",
            "OptInRequired",
            "PendingVerification",
            "Blocked",
        }
    ),
    RegionDown: frozenset({"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", "ServerInternal"}),
}
_BY_CODE = {code: kind for kind, codes in _CODES.items() for code in codes}

_NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.SSOError,
    exceptions.ProfileNotFound,
)
_NOT_REACHED = (exceptions.HTTPClientError, exceptions.EndpointConnectionError, exceptions.ConnectionError)

_LONGEST = 300
"""AWS appends an encoded report of several kilobytes to some refusals."""


def translate(error: ClientError | BotoCoreError) -> CloudError:
    """The error of the contract; its message says what AWS said."""
    if isinstance(error, _NO_CREDENTIALS):
        return Unauthorized(f"no AWS credentials that are good: {error}"[:_LONGEST])
    if isinstance(error, _NOT_REACHED):
        return RegionDown(str(error)[:_LONGEST])
    if not isinstance(error, ClientError):
        return Misconfigured(str(error)[:_LONGEST])
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = f"{code}: {error.response.get('Error', {}).get('Message', '')}"[:_LONGEST]
    kind = _BY_CODE.get(code)
    if kind is None:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400))
        kind = RegionDown if status >= 500 else Misconfigured
    return kind(message)
