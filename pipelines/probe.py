"""Probe: whether a store can hold an output, found by trying before a run starts.

It must take and delete objects, and of several writers that create one object at once let exactly one: that makes a
Delta commit a commit. Stores exist that ignore the condition, and some that check it and then let several pass.

A probe's objects lie in runs/.probe/, the first of them a sign of the process that tries: of a probe that was killed,
the next one sees it and takes its objects away.
"""

import contextlib
import re
import secrets
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from pipelines import patience, s3, storage
from pipelines.config import UserError
from pipelines.sink import alive

WRITERS = 8
ROUNDS = 5
RACES = 3  # of one round in which nobody won: a store may tell all of them to come again (409)
STALE_HOURS = 24  # after so long a probe of another machine, or without a sign, is dead: probes take seconds

# As `storage.put` and `create` name them; with a suffix, where they were killed in the act on a local disk.
_OURS = re.compile(r"\.?([0-9a-f]{10})-\d+(\.[0-9a-f]{10}\.part)?")


def check_store(sink_uri: str) -> None:
    """Refuse a place that cannot hold an output. Nothing is left there, but for the folder itself on a local disk.

    Raises:
        UserError: what it does instead, and what to do.
    """
    folder = storage.join(storage.checked(sink_uri), "runs", ".probe")
    token = secrets.token_hex(5)
    left = [storage.join(folder, f"{token}-{number}") for number in range(ROUNDS + 1)]
    try:
        with alive.known_here(token):
            sign = alive.Sign.of_this_process(token).to_json()
            try:
                with patience.at_most(
                    s3.PROBE_S
                ):  # a wrong endpoint is told at once; one that has answered is waited for
                    storage.put(left[0], sign)
                # It has answered: should it go away now, it is waited for as at any other time.
                _check_condition(sink_uri, left[0], sign)
                with ThreadPoolExecutor(ROUNDS) as pool:  # at once: in each, SeaweedFS lets losers wait for 1 to 3 s
                    rounds = [pool.submit(copy_context().run, _check_race, sink_uri, uri) for uri in left[1:]]
                for one in rounds:
                    one.result()
            except BaseException:
                # What went wrong first is what is told, and soon.
                with contextlib.suppress(storage.StoreFailed), patience.at_most(s3.PROBE_S):
                    storage.delete_all(left[::-1])
                raise
            storage.delete_all(left[::-1])  # the sign last: a rest without it is nobody's
            _sweep(folder)
    except storage.Unconditional as error:
        raise _refusal(sink_uri, str(error)) from error
    except storage.StoreFailed as error:
        raise UserError(str(error)) from error
    except FileNotFoundError:
        raise UserError(f"{storage.shown(sink_uri)}: nothing can be stored there; choose another place") from None


def _sweep(folder: str) -> None:
    """Take away what probes have left that were killed."""
    probes: dict[str, list[storage.Stored]] = defaultdict(list)
    for stored in storage.listing(folder, missing_ok=True):
        if (ours := _OURS.fullmatch(stored.path)) is not None:
            probes[ours[1]].append(stored)
    for token, left in probes.items():
        lives = _lives(storage.join(folder, f"{token}-0"))
        old = time.time() - max(stored.mtime for stored in left) > STALE_HOURS * 3600
        if lives is False or (lives is None and old):
            storage.delete_all([stored.uri for stored in sorted(left, key=lambda stored: stored.path, reverse=True)])


def _lives(uri: str) -> bool | None:
    """Whether the process is alive whose sign is at `uri`; None: nobody here knows."""
    try:
        return alive.lives_here(alive.Sign.from_json(storage.get(uri)))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _check_condition(sink_uri: str, uri: str, sign: bytes) -> None:
    """What is there may not be created once more."""
    if storage.create(uri, b"again") or storage.get(uri) != sign:
        raise _refusal(sink_uri, "an object that should be created only if it is not there was overwritten")


def _check_race(sink_uri: str, uri: str) -> None:
    """Of writers at one moment, one alone may create an object, and what it wrote must be there."""
    for _ in range(RACES):
        stored = _race(uri)
        try:
            there = int(storage.get(uri))
        except FileNotFoundError:
            continue
        # None of them if the answer to the one that won was lost: repeated by botocore, its request then met itself.
        if stored not in ([there], []):
            what = f"{len(stored)} of {WRITERS} writers were told that they had created one and the same object"
            raise _refusal(sink_uri, what)
        return
    raise _refusal(sink_uri, f"none of {WRITERS} writers could create an object that was not there")


def _race(uri: str) -> list[int]:
    """The writers that were told that they had created `uri`."""
    start = threading.Barrier(WRITERS)

    def write(number: int) -> bool:
        start.wait()
        return storage.create(uri, str(number).encode())

    with ThreadPoolExecutor(WRITERS) as pool:
        # Each in a copy of this context, whose are patience and who is told of a wait.
        told = [pool.submit(copy_context().run, write, number) for number in range(WRITERS)]
        return [number for number, one in enumerate(told) if one.result()]


def _refusal(sink_uri: str, what: str) -> UserError:
    if storage.is_s3(sink_uri):
        use = (
            "Use a store with conditional writes (PutObject with If-None-Match: *), such as AWS S3, Cloudflare R2, "
            "MinIO, Ceph, or SeaweedFS after 4.16"
        )
    else:
        use = "Use a file system with hard links, such as ext4 or XFS, or an s3:// URI"
    return UserError(
        f"{storage.shown(sink_uri)} cannot hold an output: {what}. Two runs at once could both believe that they had "
        f"committed. {use}"
    )
