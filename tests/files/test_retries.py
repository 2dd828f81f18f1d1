"""Which errors of stores are retried, and what becomes of them: one line, of the right kind."""

import pytest
from botocore.exceptions import ClientError
from gcsfs.retry import ChecksumError, HttpError
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError
from s3fs.errors import translate_boto_error

from raymerge.errors import InputError, LostError, ResourceError, UserError
from raymerge.files.retries import is_transient, plain_errors


def of_s3(code: str, status: int) -> BaseException:
    answer = {"Error": {"Code": code, "Message": "why"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(answer, "PutObject"))


def without_token(cause: Exception | None = None) -> RefreshError:
    error = RefreshError("invalid_grant")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HttpError({"code": 503, "message": "busy"}), LostError),
        (HttpError({"message": "cut off"}), LostError),
        (HttpError({"code": 400, "message": "bad bucket"}), ResourceError),
        (HttpError({"code": 401, "message": "Invalid Credentials"}), ResourceError),
        (HttpError({"code": 409, "message": "conflict"}), ResourceError),
        (ValueError("Bad Request: b/x\ninvalid argument"), ResourceError),
        (ChecksumError("md5"), LostError),
        (DefaultCredentialsError("none"), InputError),
        (without_token(), InputError),
        (without_token(TransportError("no metadata server")), LostError),
        (TransportError("no metadata server"), LostError),
        (of_s3("InternalError", 500), LostError),
        (of_s3("SlowDown", 503), LostError),
        (of_s3("RequestTimeout", 400), LostError),
        (of_s3("502", 502), LostError),
        (of_s3("KMS.DisabledException", 400), ResourceError),
        (of_s3("ExpiredToken", 400), ResourceError),
        (OSError(5, "a disk's own Input/output error"), LostError),
    ],
    ids=repr,
)
def test_what_an_answer_says_decides_whether_it_is_worth_a_retry(error: Exception, kind: type[UserError]) -> None:
    with pytest.raises(UserError) as raised, plain_errors("gs://shop/x"):
        raise error
    assert type(raised.value) is kind
    assert is_transient(error) is (kind is LostError)
    assert "\n" not in str(raised.value)
