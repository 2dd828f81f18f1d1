"""What a user can do wrong, one class each.

Each takes one message that says what is wrong, the value found and what to change. The command prints it as one
line with exit code 2, or 75 for what another try may cure. All survive pickling, because the message is their only
argument.
"""

from raymerge.redaction import redact

EXIT_USER_ERROR, EXIT_TRY_AGAIN, EXIT_INTERRUPTED = 2, 75, 130


class UserError(ValueError):
    """Base of all mistakes that the user can correct."""


class ConfigError(UserError):
    """An unknown key, a value out of range, settings that contradict each other."""


class UnknownNameError(ConfigError):
    """A name that no registry knows: recipe, objective, estimator, merge method, format."""


class InputError(UserError):
    """An interaction log, a history or an option that cannot be read as what it should be."""


class MissingError(InputError):
    """A file that is not there."""


class ArtifactError(UserError):
    """An artifact that is missing, truncated, altered, or not one of ours."""


class MergeError(UserError):
    """Models that cannot be merged, with the first difference found."""


class ScoreError(UserError):
    """A model whose scores or losses are not finite numbers."""


class ResourceError(UserError):
    """More CPUs, GPUs, memory or disk than there are, or a deadline that has passed."""


class LostError(ResourceError):
    """What a cluster or a store failed to do several times, though it could: the same command may succeed later."""


class TrackingError(UserError):
    """A tracking server that cannot be reached, or that does not accept us."""


def first_line(error: BaseException) -> str:
    """What an error says first, or its type where it says nothing.

    >>> first_line(OSError("no answer\\nand a long trace")), first_line(TimeoutError())
    ('no answer', 'TimeoutError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException) -> str:
    """One short line from an error, with no user, password or query in the URLs it names.

    >>> reason(OSError("no answer from\\nhttps://me:secret@host/api?token=x"))
    'no answer from https://host/api'
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return redact(text)[:200]


def innermost(error: BaseException) -> BaseException:
    """The error that led to all the others."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
