"""What a probe leaves that is cut off, and who takes it away. What it finds of stores: test_s3_storage.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import s3, storage
from pipelines.config import UserError
from pipelines.probe import ROUNDS, STALE_HOURS, check_store
from pipelines.sink.alive import Sign
from tests.conftest import S3Server
from tests.proxies import Answer, Request, proxy

STOPS_WHEN_ALL_IS_THERE = """
import os, signal, sys
from pipelines import probe, storage
storage.delete_all = lambda uris: os.kill(os.getpid(), signal.SIGSTOP)
probe.check_store(sys.argv[1])
"""


@pytest.fixture
def stopped(store: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stands still at the end of its probe."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS_WHEN_ALL_IS_THERE, store], env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    yield process
    process.kill()
    process.wait()


def left(store: str) -> list[str]:
    return sorted(one.path for one in storage.listing(store, missing_ok=True))


def test_what_a_killed_probe_left_goes_with_the_next_and_what_a_live_one_has_stays(
    store: str, stopped: "subprocess.Popen[bytes]"
) -> None:
    its_own = left(store)
    assert len(its_own) == ROUNDS + 1

    check_store(store)
    assert left(store) == its_own  # stopped is alive: it may go on

    stopped.send_signal(signal.SIGKILL)
    stopped.wait()
    check_store(store)
    assert left(store) == []


def test_a_probe_of_another_machine_stays_until_it_is_old_and_what_is_no_probe_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / ".probe"
    far = replace(Sign.of_this_process("x"), host="far", machine="another")
    for token, content in (("0123456789", far.to_json()), ("abcdef0123", b"no sign")):
        storage.put(str(folder / f"{token}-0"), content)
        storage.put(str(folder / f"{token}-1"), b"3")
    (folder / f".{'0123456789'}-2.00ff00ff00.part").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"of a user")
    before = left(str(tmp_path))

    check_store(str(tmp_path))
    assert left(str(tmp_path)) == before

    old = time.time() - STALE_HOURS * 3600 - 60
    for file in folder.iterdir():
        os.utime(file, (old, old))
    check_store(str(tmp_path))
    assert left(str(tmp_path)) == ["runs/.probe/notes.txt"]


def test_a_store_that_goes_away_while_it_is_tried_is_waited_for_and_one_that_never_answers_is_told_at_once(
    weed: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PROBE_S", 0.3)
    puts: list[float] = []

    def away(request: Request) -> Answer | None:
        if request.method == "PUT":
            puts.append(time.monotonic())
        return Answer(503, "SlowDown") if len(puts) > 1 and time.monotonic() - puts[0] < 1.5 else None

    with proxy(weed) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        between.rule = away
        check_store(f"{s3_bucket}/out")
        assert puts[-1] - puts[0] > 1.5

        between.rule = lambda request: Answer(503, "SlowDown")
        with pytest.raises(UserError, match="SlowDown"):
            check_store(f"{s3_bucket}/out")
