"""Which errors of a store are temporary, how often a call is retried, and how errors are reported: in one line.

Errors of object store clients are recognised by name, because the clients need not be installed.
"""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from raymerge.errors import InputError, LostError, ResourceError, UserError, reason
from raymerge.redaction import without_credentials

RETRY_LIMIT_S, MAX_ATTEMPTS = 60.0, 12
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0

TRANSIENT = frozenset(
    {
        "TimeoutError",
        "ConnectionError",
        "HTTPClientError",  # botocore: closed connections and time-outs
        "ResponseParserError",
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "IncompleteRead",  # urllib3
        "Timeout",  # requests
        "HttpError",  # gcsfs: after its own retries
        "ChecksumError",
        "TransportError",  # google.auth: no answer
    }
)
TRANSIENT_ERRNOS = {
    getattr(errno, name, errno.EIO) for name in ("EIO", "EREMOTEIO", "EBUSY", "EPIPE", "EAGAIN", "ETIMEDOUT")
}
TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)  # of a web server
CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "GoogleAuthError",
    }
)
REFUSALS = frozenset({"BotoCoreError", "ClientResponseError", "HttpError"})
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
MISSING = (FileNotFoundError, NotADirectoryError)

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later."""
    if isinstance(error, UserError):
        return False
    if "RefreshError" in _names(error) and error.__cause__:  # google.auth: why there is no new token
        return is_transient(error.__cause__)
    if (status := _status(error)) is not None:
        return status in TRANSIENT_STATUSES
    return bool(TRANSIENT & _names(error)) or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS)


def _status(error: BaseException) -> int | None:
    """The HTTP status that a server has answered, as aiohttp, gcsfs or s3fs report it; None if it has not."""
    if "ClientResponseError" in _names(error):
        return getattr(error, "status", 0)
    if "HttpError" in _names(error):
        return int(getattr(error, "code", None) or 0) or None
    if isinstance(error, OSError) and error.errno == errno.EIO:  # s3fs: an answer that it does not know
        answer = getattr(error.__cause__, "response", None) or {}
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def retried(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The function's result; retried on temporary errors, with growing random pauses, for about a minute.

    The function must be safe to repeat after a failure.
    """
    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(MAX_ATTEMPTS) | stop_after_delay(RETRY_LIMIT_S),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        before_sleep=_note,
        reraise=True,
    )
    return attempts(function, *args, **kwargs)


def _note(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info("attempt %d at the store failed: %s", state.attempt_number, reason(error) if error else "")


@contextmanager
def disk_errors(url: str) -> Iterator[None]:
    """Turn errors of a full disk or missing permissions into a one-line ResourceError."""
    try:
        yield
    except OSError as error:
        shown, number = without_credentials(url), error.errno
        if number in FULL:
            raise ResourceError(
                f"no space left for {shown} ({reason(error)}); free some or choose another location"
            ) from error
        if number in FORBIDDEN or isinstance(error, PermissionError):
            raise ResourceError(
                f"no permission for {shown} ({reason(error)}); choose another location or other credentials"
            ) from error
        raise


@contextmanager
def plain_errors(url: str) -> Iterator[None]:
    """Turn errors of a disk or an object store into one-line errors; a missing file stays a FileNotFoundError."""
    try:
        with disk_errors(url):
            yield
    except (UserError, *MISSING, IsADirectoryError, FileExistsError):
        raise
    except Exception as error:
        shown, names = without_credentials(url), _names(error)
        if is_transient(error):
            raise LostError(
                f"{shown} did not answer ({reason(error)}); run the same command again once it does"
            ) from error
        if CREDENTIALS & names:
            raise InputError(
                f"no credentials for {shown} ({reason(error)}); set those of the store in the environment, "
                "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
            ) from error
        if isinstance(error, OSError | ValueError) or REFUSALS & names:
            raise ResourceError(f"{shown} cannot be used: {reason(error)}") from error
        raise
