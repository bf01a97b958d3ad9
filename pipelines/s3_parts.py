"""A long S3 listing in parts that are asked for at once: a page of 1000 names takes a store 50 to 200 ms.

Between names that are known to be there, the store is asked for what follows one of them, up to the next. That is the
whole listing where names come in the order of their bytes, as S3 promises and directory buckets do not: the first page
of each part shows it, before any name is given.
"""

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, TypeAlias

from botocore.exceptions import ClientError

from pipelines import s3

PARTS = 8
PAGES_AHEAD = 16  # that wait for whoever reads the listing
FROM = 5_000  # names; a shorter listing is a few pages
LOOKS_EVERY_S = 0.2  # a part that has no room, for whether anybody still reads

Page: TypeAlias = list[dict[str, Any]]


def cut(names: Sequence[str]) -> list[str]:
    """Names between which as many others lie; none: there are too few."""
    if len(names) < FROM:
        return []
    ordered = sorted(names)
    return [ordered[len(ordered) * part // PARTS] for part in range(1, PARTS)]


def pages(bucket: str, prefix: str, cuts: Sequence[str]) -> Iterator[Page] | None:
    """The objects below `prefix`, in pages of any order; None: this store does not list in parts.

    `cuts`: from `cut`, of names right below the prefix.
    """
    parts = [_Part(bucket, prefix, after, until) for after, until in zip(("", *cuts), (*cuts, ""), strict=True)]
    try:
        with ThreadPoolExecutor(PARTS) as pool:
            if not all(pool.map(_Part.begins, parts)):
                return None
    except ClientError:  # whatever is wrong besides, the listing in one will tell
        return None
    return _together(parts)


def _together(parts: Sequence["_Part"]) -> Iterator[Page]:
    arrived: queue.Queue[Page | BaseException | None] = queue.Queue(PAGES_AHEAD)
    left = Event()

    def put(item: Page | BaseException | None) -> bool:
        while not left.is_set():
            try:
                arrived.put(item, timeout=LOOKS_EVERY_S)
            except queue.Full:
                continue
            return True
        return False

    def read(part: _Part) -> None:
        try:
            if all(map(put, part.pages())):
                put(None)
        except BaseException as error:  # noqa: BLE001 – raised where the listing is read
            put(error)

    with ThreadPoolExecutor(PARTS) as pool:
        at_work = len([pool.submit(read, part) for part in parts])
        try:
            while at_work:
                item = arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    at_work -= 1
                else:
                    yield item
        finally:
            left.set()


class _Part:
    """What is listed after one name, up to another one, itself included; empty: no such bound."""

    def __init__(self, bucket: str, prefix: str, after: str, until: str) -> None:
        self._after = f"{prefix}{after}" if after else ""
        self._until = f"{prefix}{until}" if until else ""
        self._asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, **s3.payer()}
        if after:
            self._asked["StartAfter"] = self._after
        self._first: Any = None

    def begins(self) -> bool:
        """Get the first page; whether it is what was asked for, in order."""
        self._first = s3.client().list_objects_v2(**self._asked)
        keys = [one["Key"] for one in self._first.get("Contents", ())]
        return all(before < key for before, key in zip((self._after, *keys), keys, strict=False))

    def pages(self) -> Iterator[Page]:
        answer = self._first
        while True:
            page = list(answer.get("Contents", ()))
            inside = [one for one in page if not self._until or one["Key"] <= self._until]
            if inside:
                yield inside
            if len(inside) < len(page) or not answer.get("IsTruncated"):
                return
            answer = s3.client().list_objects_v2(**self._asked, ContinuationToken=answer["NextContinuationToken"])
