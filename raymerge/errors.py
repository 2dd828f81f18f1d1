"""Errors that a user can fix, one class per kind.

Each takes one message that says what is wrong, the value found and what to change. The command prints it as one line
and exits with code 2, or 75 if a retry may help. All can be pickled, because the message is their only argument.
"""

from raymerge.redaction import redact

EXIT_USER_ERROR, EXIT_TRY_AGAIN, EXIT_INTERRUPTED = 2, 75, 130


class UserError(ValueError):
    """Base of all errors that the user can fix."""


class ConfigError(UserError):
    """An unknown key, a value out of range, settings that contradict each other."""


class UnknownNameError(ConfigError):
    """A name that is not registered: recipe, objective, estimator, merge method, format."""


class InputError(UserError):
    """An interaction log, a history or an option that cannot be used as given."""


class MissingError(InputError):
    """A file that is not there."""


class ArtifactError(UserError):
    """An artifact that is missing, truncated, altered, or not raymerge's."""


class MergeError(UserError):
    """Models that cannot be merged, with the first difference found."""


class ScoreError(UserError):
    """A model whose scores or losses are not finite numbers."""


class ResourceError(UserError):
    """Too few CPUs or GPUs, too little memory or disk space, or a deadline that has passed."""


class LostError(ResourceError):
    """A cluster or store that failed several times: the same command may succeed later."""


class TrackingError(UserError):
    """A tracking server that cannot be reached or refuses access."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none; with no secrets, like `reason`.

    >>> first_line(OSError("no answer from http://me:secret@host/\\nand a long trace")), first_line(TimeoutError())
    ('no answer from http://host/', 'TimeoutError')
    """
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])


def reason(error: BaseException) -> str:
    """One short line from an error, with no user, password or query in the URLs it names.

    >>> reason(OSError("no answer from\\nhttps://me:secret@host/api?token=x"))
    'no answer from https://host/api'
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return redact(text)[:200]


def innermost(error: BaseException) -> BaseException:
    """The error that caused all the others in a chain."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
