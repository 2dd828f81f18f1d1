"""Which errors of a store pass, how often is tried again, and how the rest reads: in one line.

Errors of the clients of object stores are known by name, because none of those clients need be installed.
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

PASSING = frozenset(
    {
        "TimeoutError",
        "ConnectionError",
        "HTTPClientError",  # botocore: closed connections and time-outs
        "ResponseParserError",
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "IncompleteRead",  # urllib3
        "Timeout",  # requests
        "HttpError",  # gcsfs: what its own attempts did not mend
    }
)
PASSING_ERRNOS = {
    getattr(errno, name, errno.EIO) for name in ("EIO", "EREMOTEIO", "EBUSY", "EPIPE", "EAGAIN", "ETIMEDOUT")
}
PASSING_STATUSES = (408, 429, 500, 502, 503, 504)  # of a web server
CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "DefaultCredentialsError",  # google.auth
    }
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
MISSING = (FileNotFoundError, NotADirectoryError)

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well succeed a moment later."""
    if isinstance(error, UserError):
        return False
    if "ClientResponseError" in _names(error):  # aiohttp: an answer, if not the one that was wanted
        return getattr(error, "status", 0) in PASSING_STATUSES
    return bool(PASSING & _names(error)) or (isinstance(error, OSError) and error.errno in PASSING_ERRNOS)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def retried(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The function's result; called again while its errors pass, with growing random pauses, for about a minute.

    The function must be a whole operation, which leaves nothing wrong when it fails and may be done twice.
    """
    attempts = Retrying(
        retry=retry_if_exception(is_passing),
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
    """Turn a full or forbidden place into one clear line, a ResourceError; all else stays as it is."""
    try:
        yield
    except OSError as error:
        place, number = without_credentials(url), error.errno
        if number in FULL:
            raise ResourceError(
                f"no space left for {place} ({reason(error)}); free some or choose another place"
            ) from error
        if number in FORBIDDEN or isinstance(error, PermissionError):
            raise ResourceError(
                f"no permission at {place} ({reason(error)}); choose another place or other credentials"
            ) from error
        raise


@contextmanager
def plain_errors(url: str) -> Iterator[None]:
    """Turn what a disk or an object store says into one clear line; what is missing stays a FileNotFoundError."""
    try:
        with disk_errors(url):
            yield
    except (UserError, *MISSING, IsADirectoryError, FileExistsError):
        raise
    except Exception as error:
        place, names = without_credentials(url), _names(error)
        if CREDENTIALS & names:
            raise InputError(
                f"no credentials for {place} ({reason(error)}); set those of the store in the environment, "
                "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if is_passing(error):
            raise LostError(
                f"{place} did not answer ({reason(error)}); give the same command again once it does"
            ) from error
        if isinstance(error, OSError) or {"BotoCoreError", "ClientResponseError"} & names:
            raise ResourceError(f"{place} cannot be used: {reason(error)}") from error
        raise
