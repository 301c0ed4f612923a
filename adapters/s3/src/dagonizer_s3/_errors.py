"""How the errors of the server and of the SDK become the project's.

The server answers with a code (``_BY_CODE``), or with a bare status, as it does to HEAD (``_BY_STATUS``):

AccessDenied, SignatureDoesNotMatch, NoSuchBucket, RequestTimeTooSkewed, NotImplemented … 401 403   StoreAccessError
EntityTooLarge, QuotaExceeded … 413 507                                                            StoreLimitError
a redirection                                                                                      StoreAccessError
PreconditionFailed 412                                                                             StoreConflictError
SlowDown, InternalError, RequestTimeout … 5xx and every other answer                               StoreUnavailableError

The SDK raises what it has no answer for (``_BY_EXCEPTION``):

no or wrong credentials, configuration, certificate     StoreAccessError
a checksum that does not match                          StoreCorruptedError
no connection, no answer, half of one, no S3 server     StoreUnavailableError

Where the server says that a key is absent, or a condition failed, the store looks before this table does.
"""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp
from botocore import exceptions as sdk  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from dagonizer.errors import (
    StoreAccessError,
    StoreConflictError,
    StoreCorruptedError,
    StoreLimitError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from dagonizer.errors import StoreError

    Verdict: TypeAlias = tuple[type[StoreError], str]

_SHOWN_CHARACTERS = 300

_CREDENTIALS: Verdict = (StoreAccessError, "check the credentials: the URL's, the profile's or the environment's")
_EXPIRED: Verdict = (StoreAccessError, "get new temporary credentials")
_CLOCK: Verdict = (StoreAccessError, "set this machine's clock")
_BUCKET: Verdict = (StoreAccessError, "check the bucket's name and the server; the bucket is never created")
_REGION: Verdict = (StoreAccessError, "give the bucket's own region, as in ?region=eu-central-1")
_KMS: Verdict = (StoreAccessError, "check the KMS key, and that the caller may use it")
_UNSUPPORTED: Verdict = (StoreAccessError, "the server cannot do this; take the parameter away, or another server")
_ARCHIVED: Verdict = (StoreAccessError, "restore the object from its archive")
_LIMIT: Verdict = (StoreLimitError, "free space, raise the quota, or save less")
_CONFLICT: Verdict = (StoreConflictError, "load it again")
_BUSY: Verdict = (StoreUnavailableError, "try again later; a save or deletion may have happened")
_REDIRECTED: Verdict = (
    StoreAccessError,
    "the bucket is elsewhere: give its own region and endpoint, as in ?region=eu-central-1",
)

DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "UnauthorizedAccess", "403", "401"})
"""Codes that say no more than that the caller may not."""

UNSUPPORTED = frozenset({"NotImplemented", "InvalidArgument", "InvalidRequest"})
"""Codes by which servers refuse a header that they do not know, such as a condition. Nothing was done."""

_BY_CODE: dict[str, Verdict] = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "AuthorizationHeaderMalformed": _REGION,
    "AuthorizationQueryParametersError": _CREDENTIALS,
    "CredentialsNotSupported": _CREDENTIALS,
    "InvalidSecurity": _CREDENTIALS,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "ExpiredToken": _EXPIRED,
    "RequestExpired": _CLOCK,
    "RequestTimeTooSkewed": _CLOCK,
    "AccountProblem": _CREDENTIALS,
    "NotSignedUp": _CREDENTIALS,
    "MethodNotAllowed": _UNSUPPORTED,
    "NotImplemented": _UNSUPPORTED,
    "InvalidRequest": _UNSUPPORTED,
    "InvalidArgument": _UNSUPPORTED,
    "InvalidEncryptionAlgorithmError": _UNSUPPORTED,
    "ServerSideEncryptionConfigurationNotFoundError": _UNSUPPORTED,
    "XNotImplemented": _UNSUPPORTED,
    "NoSuchBucket": _BUCKET,
    "InvalidBucketName": _BUCKET,
    "InvalidBucketState": _BUCKET,
    "NoSuchAccessPoint": _BUCKET,
    "PermanentRedirect": _REDIRECTED,
    "TemporaryRedirect": _REDIRECTED,
    "Redirect": _REDIRECTED,
    "IllegalLocationConstraintException": _REGION,
    "InvalidLocationConstraint": _REGION,
    "InvalidRegionName": _REGION,
    "KMS.DisabledException": _KMS,
    "KMS.InvalidKeyUsageException": _KMS,
    "KMS.KMSInvalidStateException": _KMS,
    "KMS.NotFoundException": _KMS,
    "InvalidObjectState": _ARCHIVED,
    "ObjectLocked": (StoreAccessError, "the bucket forbids to change the object; remove its lock or wait"),
    "EntityTooLarge": _LIMIT,
    "MaxMessageLengthExceeded": _LIMIT,
    "MetadataTooLarge": _LIMIT,
    "KeyTooLongError": (StoreLimitError, "use a shorter prefix or key"),
    "QuotaExceeded": _LIMIT,
    "InsufficientCapacity": _LIMIT,
    "XMinioAdminBucketQuotaExceeded": _LIMIT,
    "XMinioStorageFull": _LIMIT,
    "TooManyObjects": _LIMIT,
    "PreconditionFailed": _CONFLICT,
    "BadDigest": (StoreUnavailableError, "the text was damaged on its way; save it again"),
    "XAmzContentSHA256Mismatch": (StoreUnavailableError, "the text was damaged on its way; save it again"),
}

_BY_STATUS: dict[int, Verdict] = {
    301: _REDIRECTED,
    302: _REDIRECTED,
    303: _REDIRECTED,
    307: _REDIRECTED,
    308: _REDIRECTED,
    404: (StoreAccessError, "the server knows neither bucket nor key; check that endpoint_url is that of an S3 server"),
    405: _UNSUPPORTED,
    412: _CONFLICT,
    413: _LIMIT,
    501: _UNSUPPORTED,
    507: _LIMIT,
}

_BROKEN = (
    sdk.ConnectionClosedError,
    sdk.EndpointConnectionError,
    sdk.ResponseStreamingError,
    sdk.IncompleteReadError,
    aiohttp.ClientPayloadError,
)
"""What the SDK raises when a connection breaks; all that a load may be repeated for."""

_NO_CREDENTIALS: Verdict = (
    StoreAccessError,
    "give credentials: in the URL, by a profile, or in the environment as AWS describes",
)
_CONFIGURATION: Verdict = (StoreAccessError, "correct the URL's parameters or the AWS configuration")
_CERTIFICATE: Verdict = (
    StoreAccessError,
    "give the file of the authority that signed its certificate as ?ca_bundle=",
)
_SILENT: Verdict = (
    StoreUnavailableError,
    "check that the server runs and can be reached, then try again; a save or deletion may have happened",
)
_DAMAGED: Verdict = (StoreCorruptedError, "load it again; if it stays so, the object is damaged")
_STRANGE: Verdict = (StoreUnavailableError, "it answered, but not as an S3 server does; check endpoint_url")

# The first that fits. Classes that stand for several are at the end.
_BY_EXCEPTION: tuple[tuple[tuple[type[BaseException], ...], Verdict], ...] = (
    (
        (
            sdk.CredentialRetrievalError,
            sdk.MetadataRetrievalError,
            sdk.NoAuthTokenError,
            sdk.NoCredentialsError,
            sdk.PartialCredentialsError,
            sdk.RefreshWithMFAUnsupportedError,
            sdk.SSOError,
            sdk.TokenRetrievalError,
            sdk.UnknownCredentialError,
        ),
        _NO_CREDENTIALS,
    ),
    (
        (
            sdk.BaseEndpointResolverError,
            sdk.ConfigNotFound,
            sdk.ConfigParseError,
            sdk.EndpointProviderError,
            sdk.InvalidChecksumConfigError,
            sdk.InvalidConfigError,
            sdk.InvalidDNSNameError,
            sdk.InvalidDefaultsMode,
            sdk.InvalidEndpointConfigurationError,
            sdk.InvalidHostLabelError,
            sdk.InvalidIMDSEndpointError,
            sdk.InvalidIMDSEndpointModeError,
            sdk.InvalidProxiesConfigError,
            sdk.InvalidRetryConfigurationError,
            sdk.InvalidS3AddressingStyleError,
            sdk.InvalidS3UsEast1RegionalEndpointConfigError,
            sdk.InvalidSTSRegionalEndpointsConfigError,
            sdk.MD5UnavailableError,
            sdk.MissingDependencyException,
            sdk.ParamValidationError,
            sdk.ProfileNotFound,
            sdk.ServiceNotInRegionError,
            sdk.UnknownRegionError,
            sdk.UnknownSignatureVersionError,
            sdk.UnsupportedOutpostResourceError,
            sdk.UnsupportedS3AccesspointConfigurationError,
            sdk.UnsupportedS3ArnError,
            sdk.UnsupportedS3ConfigurationError,
            sdk.UnsupportedSignatureVersionError,
            sdk.ValidationError,
        ),
        _CONFIGURATION,
    ),
    ((aiohttp.ClientConnectorCertificateError,), _CERTIFICATE),
    ((sdk.ChecksumError, sdk.FlexibleChecksumError), _DAMAGED),
    ((ResponseParserError,), _STRANGE),
    ((TimeoutError,), (StoreUnavailableError, "raise the timeout, or try again; a save or deletion may have happened")),
    ((sdk.BotoCoreError, aiohttp.ClientError, OSError), _SILENT),
)
_UNTRUSTED = (aiohttp.ClientConnectorCertificateError, FileNotFoundError, IsADirectoryError, PermissionError)
DRIVER_ERRORS = (sdk.ClientError, *(cls for classes, _ in _BY_EXCEPTION for cls in classes))


class Redirected(aiohttp.ClientError):
    """The server sends the caller elsewhere; ``region``, if it is known, is where the bucket is."""

    def __init__(self, status: int, region: str | None) -> None:
        super().__init__(f"redirected by status {status}" + (f" to the region {region}" if region else ""))


def is_broken(error: Exception) -> bool:
    """Return whether ``error`` says that a connection broke."""
    return isinstance(error, _BROKEN)


def code_of(error: sdk.ClientError) -> str:
    """Return the code of the server's answer; for an answer without one, its status."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(status_of(error))


def status_of(error: sdk.ClientError) -> int:
    """Return the HTTP status of the server's answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def translated(action: str, permission: str, place: str) -> Iterator[None]:
    """Raise what the block raises as the ``StoreError`` that says so of ``action`` and ``place``.

    ``permission`` is what the caller must be allowed for it.
    """
    try:
        yield
    except sdk.ClientError as exc:
        error, advice = _answered(exc, permission)
        raise error(f"could not {action} {place}: {_shown(exc)}; {advice}") from exc
    except DRIVER_ERRORS as exc:
        error, advice = verdict_on(exc)
        what = "no answer within the timeout" if type(exc) is TimeoutError else f"{type(exc).__name__}: {exc}"
        raise error(f"could not {action} {place}: {what}; {advice}") from exc


def verdict_on(exc: BaseException) -> Verdict:
    """Return what an exception of the SDK is to a caller, and what he should do."""
    # Under one class the SDK hides what aiohttp told apart.
    hidden = getattr(exc, "kwargs", {}).get("error")
    if isinstance(hidden, Redirected):
        return _REDIRECTED
    if isinstance(hidden, _UNTRUSTED) or type(hidden) is ssl.SSLError:
        return _CERTIFICATE
    return next(verdict for classes, verdict in _BY_EXCEPTION if isinstance(exc, classes))


def _answered(exc: sdk.ClientError, permission: str) -> Verdict:
    code, status = code_of(exc), status_of(exc)
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code in DENIED or status in {401, 403}:
        return StoreAccessError, f"grant {permission}"
    return _BY_STATUS.get(status, _BUSY)


def _shown(exc: sdk.ClientError) -> str:
    message = str(exc.response.get("Error", {}).get("Message", ""))[:_SHOWN_CHARACTERS]
    return f"the server answered {status_of(exc)} {code_of(exc)}" + (f", {message}" if message else "")
