"""Jobs on a Ray cluster, through its jobs API: submit, follow, resubmit what the cluster lost, stop.

The token is Ray's own setting (RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) and goes into requests only.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_exponential_jitter,
)

from raymerge.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    ConfigError,
    LostError,
    ResourceError,
    UserError,
    first_line,
    reason,
)
from raymerge.execution.deadline import Deadline
from raymerge.files.retries import TRANSIENT_STATUSES, is_transient
from raymerge.redaction import redact

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"  # overrides any argument of Ray's client
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S, OUTAGE_S, POLL_S, STOP_TIMEOUT_S = 10.0, 60.0, 60.0, 1.0, 20.0
UPLOAD_TIMEOUT_S = 600.0  # for the whole of a package, up to 500 MiB, and for its answer
LOG_CONNECTION_S = 120.0  # then the log is requested again: a connection can be lost silently
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 120.0
FINAL_CODES = (0, EXIT_USER_ERROR)  # success, and a user error, which a retry would repeat
EXIT_LOST, EXIT_STOPPED = 1, EXIT_INTERRUPTED
CHATTY_LOGGERS = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")  # each has a level
NO_ANSWER = (OSError, aiohttp.ClientError)
UNKNOWN_JOB = "status code 404"  # all that Ray's client reports of an answer
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A command for the cluster, with its environment and metadata."""

    entrypoint: str
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its exit code, the reason, and whether the cluster lost it."""

    exit_code: int
    reason: str
    lost: bool
    silent: bool = False  # the cluster does not answer, so the job may still run


def outcome_of(status: JobStatus, exit_code: int | None, message: str | None) -> Outcome:
    """The outcome of a job that has ended, from what the jobs API reports.

    A job without an exit code never ran or was lost with its node. One that ended with a code other than 0 and 2
    (killed, or an unforeseen failure) is worth a retry, since it resumes where it was.
    """
    reason = (message or status.value).strip().splitlines()[0]
    if status == JobStatus.STOPPED:
        return Outcome(EXIT_STOPPED, "it was stopped", lost=False)
    if status == JobStatus.SUCCEEDED:
        return Outcome(0, reason, lost=False)
    if exit_code is None:
        return Outcome(EXIT_LOST, reason, lost=True)
    code = 128 - exit_code if exit_code < 0 else exit_code  # ended by a signal: the code that a shell would report
    return Outcome(code, f"exit code {code}", lost=code not in FINAL_CODES)


def run_job(
    job: Job, *, address: str, retries: int, deadline: Deadline, write: Say, say: Say, wait_s: float = FIRST_WAIT_S
) -> int:
    """Run a job to its end and return its exit code; `write` gets its log, `say` what happens to it.

    If the cluster does not answer or loses the job, it is contacted or the job submitted again, up to `retries` times,
    with exponential backoff from `wait_s`, jittered. An interrupt stops the job on the cluster. Raises LostError if no
    cluster ever answered; ResourceError if the server is not a cluster or refuses access, or if the deadline passes,
    after which the job is stopped; UserError if `write` fails, after which it goes on.
    """

    def announce(state: RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        what = state.outcome.exception() or f"the job was lost ({state.outcome.result().reason})"
        say(f"{what}; retry {state.attempt_number} of {retries} in {state.next_action.sleep:.0f} s")
        deadline.check("the job")

    attempts = Retrying(
        retry=retry_if_exception_type(LostError) | retry_if_result(lambda outcome: outcome.lost),
        stop=stop_after_attempt(1 + retries),
        wait=wait_exponential_jitter(initial=wait_s, max=LONGEST_WAIT_S, jitter=wait_s),
        before_sleep=announce,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    submission = _Submission(address, job, deadline, write, say)
    try:
        outcome: Outcome = attempts(submission.run)
    except (KeyboardInterrupt, ResourceError):
        submission.stop()
        raise
    if outcome.silent:
        submission.stop()
    if outcome.exit_code:
        say(f"the job failed: {outcome.reason}")
    return outcome.exit_code


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's jobs API.

    Raises LostError if there is no answer, as while a head starts; ResourceError if a retry cannot help: no such host,
    a server that is not a cluster, or a wrong token.
    """
    for chatty in CHATTY_LOGGERS:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        where = urlsplit(address)
        port = where.port or (443 if where.scheme == "https" else 80)
    except ValueError:  # not a valid port
        port = 0
    if not port or where.scheme not in ("http", "https") or not where.hostname:
        raise ConfigError(
            f"the address must be that of the dashboard, such as {DEFAULT_ADDRESS}, got {redact(address)!r}"
        )
    try:
        socket.create_connection((where.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
        with _address(address):
            return _Client(address)
    except AuthenticationError as error:
        raise _wants_token(address, error) from None
    except (*NO_ANSWER, RuntimeError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        kind = LostError if is_transient(error) or status in TRANSIENT_STATUSES else ResourceError
        raise kind(f"no Ray cluster at {redact(address)} ({first_line(error)}); start one or give --address") from None


class _Client(JobSubmissionClient):
    """Ray's client with a time limit for uploads and answers; by default it waits for ever."""

    def _do_request(self, method: str, *args: Any, **kwargs: Any) -> Any:
        limit = UPLOAD_TIMEOUT_S if method == "PUT" else ANSWER_TIMEOUT_S
        return super()._do_request(method, *args, **{"timeout": limit, **kwargs})


@contextlib.contextmanager
def _address(address: str) -> Iterator[None]:
    """Make Ray's client use an address: RAY_API_SERVER_ADDRESS and RAY_ADDRESS would override its argument."""
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        del os.environ[ADDRESS_VARIABLE]
        if before is not None:
            os.environ[ADDRESS_VARIABLE] = before


class _Submission:
    """A job and its name on the cluster: a retry after a silence continues to follow the job if it is there.

    Two jobs that work in one output would remove each other's checkpoints.
    """

    def __init__(self, address: str, job: Job, deadline: Deadline, write: Say, say: Say) -> None:
        self._address, self._job, self._deadline, self._write, self._say = address, job, deadline, write, say
        self._sent = False  # whether there may be a job of this name
        self._rename()

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return connect(self._address)

    def _rename(self) -> None:
        self._name = f"raymerge-{secrets.token_hex(6)}"

    def run(self) -> Outcome:
        """Submit the job unless it is there, and follow it to its end; LostError if no cluster has answered yet."""
        try:
            if not (self._sent and self._is_there()):
                self._submit()
            self._say(f"job {self._name} at {redact(self._client.get_address())}/#/jobs/{self._name}")
            return asyncio.run(self._follower.follow())
        except NO_ANSWER as error:
            return _silence(error)
        except AuthenticationError as error:
            raise _wants_token(self._client.get_address(), error) from None

    def stop(self) -> None:
        """Stop the job if there may be one."""
        if self._sent:
            _stop(self._client, self._name, self._say)

    def _is_there(self) -> bool:
        """Whether the cluster has the job; one that it lost has to be submitted under another name."""
        try:
            found = self._client.get_job_info(self._name)
        except RuntimeError as error:
            if UNKNOWN_JOB in str(error):
                return False
            raise ConnectionError(first_line(error)) from error  # an answer of a proxy in front of the cluster
        lost = found.status.is_terminal() and outcome_of(found.status, found.driver_exit_code, found.message).lost
        if lost:
            self._rename()
        return not lost

    def _submit(self) -> None:
        self._follower = _Follower(self._client, self._name, self._deadline, self._write)  # a new job has a new log
        self._sent = True
        try:
            self._client.submit_job(
                entrypoint=self._job.entrypoint,
                runtime_env=dict(self._job.runtime_env),
                metadata=dict(self._job.metadata),
                submission_id=self._name,
            )
        except (RuntimeError, ValueError) as error:
            if any(f"status code {status}" in str(error) for status in TRANSIENT_STATUSES):
                raise ConnectionError(first_line(error)) from error
            self._sent = False
            raise ResourceError(f"the cluster refuses the job: {first_line(error)}") from error


def _silence(error: BaseException) -> Outcome:
    return Outcome(EXIT_LOST, f"no answer from the cluster: {first_line(error)}", lost=True, silent=True)


def _wants_token(address: str, error: BaseException) -> ResourceError:
    return ResourceError(
        f"the Ray cluster at {redact(address)} requires its token ({first_line(error)}); set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that contains it"
    )


def _stop(client: JobSubmissionClient, name: str, say: Say) -> None:
    """Stop a job and wait until it has ended, so that no other is at work in the output when the next one starts."""
    try:
        client.stop_job(name)
        end = time.monotonic() + STOP_TIMEOUT_S
        while not (ended := client.get_job_status(name).is_terminal()) and time.monotonic() < end:
            time.sleep(POLL_S)
        found, then = "is stopped", ""
        if not ended:
            found, then = f"has not ended in {STOP_TIMEOUT_S:.0f} s", f"once `ray job status {name}` says STOPPED, "
        say(f"job {name} {found}; {then}run the same command again to resume it")
    except (*NO_ANSWER, RuntimeError, AuthenticationError) as error:
        say(f"job {name} could not be stopped ({first_line(error)}): ray job stop {name}")


class _Follower:
    """Copies a job's log as it is written, across lost connections, until the job has ended."""

    def __init__(self, client: JobSubmissionClient, name: str, deadline: Deadline, write: Say) -> None:
        self._client, self._name, self._deadline, self._write = client, name, deadline, write
        self._shown = 0  # characters of the log; a new connection starts from its beginning

    async def follow(self) -> Outcome:
        """The outcome of the job, a silent one if the cluster has not answered for `OUTAGE_S`."""
        answered = time.monotonic()
        while True:
            self._deadline.check("the job")
            try:
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._copy(), min(self._deadline.left_s, LOG_CONNECTION_S))
                found = self._client.get_job_info(self._name)
                answered = time.monotonic()
                if found.status.is_terminal():
                    return outcome_of(found.status, found.driver_exit_code, found.message)
            except (*NO_ANSWER, RuntimeError) as error:
                if time.monotonic() - answered > OUTAGE_S:
                    return _silence(error)
            await asyncio.sleep(POLL_S)

    async def _copy(self) -> None:
        skip = self._shown
        async for text in self._client.tail_job_logs(self._name):
            fresh, skip = text[skip:], max(0, skip - len(text))
            if fresh:
                self._shown += len(fresh)
                self._show(fresh)

    def _show(self, text: str) -> None:
        """Pass on a part of the log; UserError if that fails, which is no fault of the cluster's."""
        try:
            self._write(text)
        except OSError as error:
            what = f"the log cannot be written here ({reason(error)})"
            raise UserError(f"{what}; the job goes on: ray job logs --follow {self._name}") from error
