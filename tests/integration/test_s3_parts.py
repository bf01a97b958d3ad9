"""A long listing in parts that are asked for at once, on SeaweedFS and on stores that know no parts."""

import re
from collections import Counter

import pytest

from pipelines import s3_parts, storage
from pipelines.config import UserError
from tests.conftest import S3Server
from tests.proxies import Answer, Request, proxy

NAMES = [f"night-{n:03}.parquet" for n in range(60)]
OTHERS = ["_delta_log/0.json", "_waiting/night-059.parquet", "aaa", "night-017.parquet.part", "zzz"]


@pytest.fixture
def folder(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files right below a prefix, and some that nobody expects; neighbours besides."""
    for name in (*NAMES, *OTHERS):
        storage.put(f"{s3_bucket}/out/data/{name}", name.encode())
    storage.put(f"{s3_bucket}/out/data2/x", b"a neighbour")
    monkeypatch.setattr(s3_parts, "FROM", 20)
    return f"{s3_bucket}/out/data"


def listed(folder: str, expected: list[str]) -> Counter[str]:
    return Counter(one.path for one in storage.listing(folder, expected=expected))


@pytest.mark.parametrize(
    "expected",
    [NAMES, NAMES[:30], [*NAMES, *(f"gone-{n}" for n in range(60))], NAMES[:10], [f"zzzz-{n}" for n in range(40)]],
    ids=["all", "half", "more", "too few for parts", "all behind"],
)
def test_what_is_listed_in_parts_is_listed_once_whatever_was_expected(folder: str, expected: list[str]) -> None:
    assert listed(folder, expected) == Counter([*NAMES, *OTHERS])


def test_a_store_that_does_not_list_behind_a_name_is_asked_for_all_in_one(
    folder: str, weed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def rule(request: Request) -> Answer | None:
        if "start-after" not in request.path:
            return None
        refused.append(request.path)
        return Answer(501, "NotImplemented")

    with proxy(weed) as between:
        between.rule = rule
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        assert listed(folder, NAMES) == Counter([*NAMES, *OTHERS])

    assert refused


def test_a_page_that_begins_before_the_name_shows_a_store_that_takes_no_heed_of_it(folder: str) -> None:
    bucket = re.sub("^s3://([^/]+)/.*", r"\1", folder)
    part = s3_parts._Part(bucket, "out/data/", "night-030.parquet", "")
    assert part.begins()
    part._asked.pop("StartAfter")

    assert not part.begins()


def test_a_part_that_breaks_off_is_an_error_and_no_shorter_listing(
    folder: str, weed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PATIENCE_S", "0")
    begins = s3_parts._Part.begins

    def in_short_pages(part: s3_parts._Part) -> bool:
        part._asked["MaxKeys"] = 3
        return begins(part)

    monkeypatch.setattr(s3_parts._Part, "begins", in_short_pages)
    assert listed(folder, NAMES) == Counter([*NAMES, *OTHERS])

    def rule(request: Request) -> Answer | None:
        return Answer(403, "AccessDenied") if "continuation-token" in request.path else None

    with proxy(weed) as between:
        between.rule = rule
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        with pytest.raises(UserError, match="access denied"):
            listed(folder, NAMES)
