"""Secrets in URLs: found, to be refused, or removed from what is shown and kept."""

import re
from urllib.parse import urlsplit, urlunsplit

_USER = r"(?<=://)(?:[^:/\s@]*:%s\S*|[^/\s@'\"]*)@"  # a password may hold what a URL should not: /, ?, @, '
USER = re.compile(_USER % "")  # for hiding: rather too much than too little
REFUSED_USER = re.compile(_USER % r"(?!\d+/)")  # for refusing: a port is not a password
QUERY = re.compile(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*")


def redact(text: str) -> str:
    """The text without the user, password and query of each URL in it.

    >>> redact("no answer from https://me:se/cr@et@host/api?token=x after 5 s")
    'no answer from https://host/api after 5 s'
    """
    return QUERY.sub(r"\1", USER.sub("", text))


def credentials_in(text: str) -> str:
    """User and password of a URL in the text, with the @ that follows; empty if there are none."""
    found = REFUSED_USER.search(text)
    return found[0] if found else ""


def query_in(text: str) -> bool:
    """Whether a URL in the text has a query, which may be a signature; the ? of a glob does not count.

    >>> query_in("https://host/log.csv?sig=x"), query_in("s3://bucket/part-?.parquet")
    (True, False)
    """
    return any("=" in found[0].partition("?")[2] for found in QUERY.finditer(text))


def without_credentials(url: str) -> str:
    """The URL without user, password and query, so that it may be logged.

    >>> without_credentials("https://me:secret@host:80/a?token=x")
    'https://host:80/a'
    """
    if "://" not in url or url.startswith("file://"):
        return url
    parts = urlsplit(USER.sub("", url))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
