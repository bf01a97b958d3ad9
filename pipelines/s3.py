"""How S3 is reached: one client per process, its settings, and what its errors mean. For storage.py alone.

Honoured: AWS_ENDPOINT_URL (and _S3), AWS_PROFILE, AWS_REGION, AWS_DEFAULT_REGION and whatever else boto3 reads;
besides, AWS_NO_SIGN_REQUEST=true for public buckets (the AWS CLI's --no-sign-request) and
AWS_REQUEST_PAYER=requester for buckets whose readers pay.

A request that meets no answer, a 5xx or a throttling store is repeated until patience.py's patience is over, by a
handler of ours in botocore's place: botocore counts attempts, and 8 of them may be over in 5 s or in 5 minutes.
"""

import contextlib
import functools
import itertools
import logging
import os
import re
import threading
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
)

from pipelines import patience, s3_pages

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

PROBE_S = 5.0  # of patience before the start: a wrong endpoint should be told within seconds
AWAY = frozenset((429, 500, 502, 503, 504))  # statuses of a store that may do it later
SLOW_DOWN = frozenset(
    ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestTimeout")
)
STALE_CREDENTIALS = frozenset(
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")
)


def shown(uri: str) -> str:
    """`uri` as it may be printed: what stands before an @ in its first part is masked."""
    return re.sub(r"^([A-Za-z0-9+.-]+://)[^/]*@", r"\1***@", uri)


def anonymous() -> bool:
    """Whether requests go out unsigned."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").strip().lower() in ("1", "true", "yes")


def payer() -> dict[str, Any]:
    """The argument of every request that says who pays for it."""
    return {"RequestPayer": "requester"} if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester" else {}


_WAIT = "pipelines.wait"  # in botocore's context of a request
_making = threading.Lock()  # boto3 sessions may not be made by two threads at once; clients may be used by many


@functools.lru_cache(maxsize=8)
def _made(pid: int, environment: tuple[tuple[str, str], ...]) -> "tuple[boto3.Session, S3Client]":
    # Keyed by process, since a forked client shares its parent's sockets, and by environment, so that whoever
    # changes AWS_PROFILE is not answered by the old one.
    session = boto3.Session()
    settings: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": 1},  # `_patient` does it
        "connect_timeout": 5,
        "read_timeout": 60,
        "max_pool_connections": 48,  # as many as probe.py has writers, and some
        "tcp_keepalive": True,
    }
    if anonymous():
        settings["signature_version"] = UNSIGNED
    region = session.region_name or "us-east-1"
    made = session.client("s3", region_name=region, config=Config(**settings))
    if _of_others(made.meta.endpoint_url):
        # Other stores often know neither bucket.host names nor AWS's checksums in trailers.
        settings |= {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        made = session.client("s3", region_name=region, config=Config(**settings))
    made.meta.events.register("before-parse.s3.ListObjectsV2", s3_pages.parse)
    made.meta.events.register("before-call.s3", _begun)
    made.meta.events.register("needs-retry.s3", _patient)  # type: ignore[arg-type]  # it may return a pause
    return session, made


def _begun(params: dict[str, Any], **_: Any) -> None:
    params["context"][_WAIT] = patience.begin(_named(params["url"]))


def _patient(
    response: Any, caught_exception: Exception | None, request_dict: dict[str, Any], attempts: int, **_: Any
) -> float | None:
    """Seconds until botocore should send a request again; None: it was answered, or patience is over."""
    wait: patience.Wait = request_dict["context"][_WAIT]
    wait.reason = _away(response, caught_exception)
    if not wait.reason:
        patience.end(wait, answered=True)
        return None
    pause = wait.pause(attempts)
    if pause is None:
        patience.end(wait, answered=False)
        # For `reason`: what botocore raises is this exception, or made of this response.
        if caught_exception is not None:
            caught_exception.waited_s = wait.seconds()  # type: ignore[attr-defined]
        else:
            response[1].setdefault("ResponseMetadata", {})["WaitedS"] = wait.seconds()
    elif attempts == 1:
        log.warning("%s: %s; asking again for at most %.0f s", wait.store, wait.reason, patience.patience_s())
    return pause


def _away(response: Any, error: Exception | None) -> str:
    """Why a request may be answered if it is sent again later; empty: its answer is final."""
    if error is not None:
        return type(error).__name__ if isinstance(error, ConnectionError | HTTPClientError) else ""
    status, said = response[0].status_code, response[1].get("Error", {}).get("Code", "")
    if status not in AWAY and said not in SLOW_DOWN:
        return ""
    return f"{status} {said}".strip() if said != str(status) else said


def _named(url: str) -> str:
    """The store behind a URL, for a message."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _of_others(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return not host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _session() -> "tuple[boto3.Session, S3Client]":
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _making:
        return _made(os.getpid(), environment)


def client() -> "S3Client":
    """This process's client; safe to use from many threads."""
    return _session()[1]


def body(bucket: str, key: str, **request: Any) -> bytes:
    """What GetObject sends, asked again if it breaks off: botocore repeats what comes before a body, not the body."""
    wait = patience.Wait(bucket, time.monotonic())
    for attempt in itertools.count(1):
        answer = client().get_object(Bucket=bucket, Key=key, **request, **payer())
        try:
            with contextlib.closing(answer["Body"]) as stream:
                return stream.read()
        except (IncompleteReadError, ResponseStreamingError, HTTPClientError) as error:
            log.warning("s3://%s/%s: %s, attempt %d", bucket, key, type(error).__name__, attempt)
            pause = wait.pause(attempt)
            if pause is None:
                raise
        time.sleep(pause)
    raise AssertionError("unreachable")


def clock_ahead_s(bucket: str) -> float | None:
    """How far this machine's clock is ahead of the store's, by the Date of an answer (whole seconds); None: no Date.

    A refusal has a Date as well. Signed requests are refused from 15 minutes on.
    """
    try:
        answer: Any = client().head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return None if said is None else time.time() - parsedate_to_datetime(said).timestamp()
    except ValueError:
        return None


def status(error: ClientError) -> int:
    """The HTTP status of an answer that was an error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: ClientError) -> str:
    """The store's name for an error; of a HEAD, which has no body, its status."""
    return error.response.get("Error", {}).get("Code", "")


def is_missing(error: ClientError) -> bool:
    """Whether the object, and not its bucket, is missing."""
    return code(error) != "NoSuchBucket" and (status(error) == 404 or code(error) == "NoSuchKey")


def reason(uri: str, error: BotoCoreError | ClientError) -> str:
    """One line: what is wrong at `uri`, and what to do."""
    where = shown(uri)
    waited = _waited(error)
    if isinstance(error, ProfileNotFound):
        return f"{where}: {error}; set AWS_PROFILE to one of those in your AWS config"
    if isinstance(error, NoCredentialsError):
        return (
            f"{where}: no AWS credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_NO_SIGN_REQUEST=true for a public bucket"
        )
    if isinstance(error, HTTPClientError | ConnectionError):
        return (
            f"{where}: {_endpoint()} does not answer{waited} ({type(error).__name__}); "
            "check AWS_ENDPOINT_URL and network"
        )
    if not isinstance(error, ClientError):
        return f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"
    said = code(error) or str(status(error))
    if said == "NoSuchBucket":
        bucket = uri.removeprefix("s3://").partition("/")[0]
        return f"{where}: there is no bucket {bucket!r} at {_endpoint()}; create it, or correct the URI"
    if said in STALE_CREDENTIALS:
        return f"{where}: the store does not accept these credentials ({said}); renew them or set AWS_PROFILE"
    if status(error) in (401, 403):
        return f"{where}: access denied ({said}) to {error.operation_name}; ask for the right, or set AWS_PROFILE"
    at = f" at {_endpoint()}" if waited else ""
    return f"{where}: the store{at} answered {said} to {error.operation_name}{waited}; try later, or see its logs"


def _waited(error: BotoCoreError | ClientError) -> str:
    """For how long it was waited before `error` was final, in words; empty: not at all."""
    response: Any = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    seconds: float = getattr(error, "waited_s", None) or metadata.get("WaitedS", 0.0)
    return f" for {seconds:.0f} s" if seconds >= 1 else ""


def _endpoint() -> str:
    try:
        return shown(client().meta.endpoint_url)
    except BotoCoreError:
        return "S3"


def delta_options(bucket: str) -> dict[str, str]:
    """What `deltalake` must be told to reach `bucket` as this module does, with credentials as they are now."""
    session, made = _session()
    endpoint = made.meta.endpoint_url
    options = {
        "aws_region": _region(bucket) or made.meta.region_name,
        "aws_conditional_put": "etag",  # a log entry is stored only where there is none: that makes it a commit
        "timeout": "60s",
        "connect_timeout": "5s",
    }
    if _of_others(endpoint):
        options |= {"aws_endpoint": endpoint, "aws_virtual_hosted_style_request": "false"}
        if endpoint.startswith("http://"):
            options["aws_allow_http"] = "true"
    if payer():
        options["aws_request_payer"] = "true"
    credentials = None if anonymous() else session.get_credentials()
    if credentials is None:
        return options | {"aws_skip_signature": "true"}
    frozen = credentials.get_frozen_credentials()
    options |= {"aws_access_key_id": frozen.access_key or "", "aws_secret_access_key": frozen.secret_key or ""}
    return options | ({"aws_session_token": frozen.token} if frozen.token else {})


@functools.lru_cache(maxsize=64)
def _region(bucket: str) -> str | None:
    """Where `bucket` lies, if AWS tells: boto3 follows its redirects, delta-rs does not."""
    if _of_others(client().meta.endpoint_url):
        return None
    try:
        return client().head_bucket(Bucket=bucket).get("BucketRegion")
    except ClientError as error:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return cast("str | None", headers.get("x-amz-bucket-region"))
