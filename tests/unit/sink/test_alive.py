"""Who is alive: processes that are killed, stopped or zombies, and runs elsewhere that beat or stand still."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.config import UserError
from pipelines.sink.alive import Sign, beating, refuse_if_alive

ROOT = Path(__file__).parents[3]
RUN = """
import sys
from pipelines.sink.alive import beating
with beating(sys.argv[1], sys.argv[2], every_s=0.05):
    print("alive", flush=True)
    sys.stdin.read()
"""

Hold = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def hold(store: str) -> Iterator[Hold]:
    """Start a process that is a run at work on `store`, as far as others see it."""
    started: list[subprocess.Popen[str]] = []

    def begin(run: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, store, run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def signs(store: str) -> list[str]:
    return sorted(one.path for one in storage.listing(f"{store}/runs", missing_ok=True))


def put(store: str, sign: Sign) -> None:
    storage.put(f"{store}/runs/{sign.run}/alive.json", sign.to_json())


def elsewhere(run: str) -> Sign:
    return replace(Sign.of_this_process(run), host="far", machine="another", pid=7)


def no_watching(words: str) -> None:
    raise AssertionError(words)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_live_run_refuses_a_second_one_with_its_name_and_a_clean_end_leaves_no_sign(store: str, hold: Hold) -> None:
    first = hold("run-1")

    with pytest.raises(UserError) as told:
        refuse_if_alive(store, doing=no_watching)

    said = str(told.value)
    for words in (
        "run run-1",
        f"pid {first.pid}",
        f"host {socket.gethostname()}",
        "last heartbeat",
        "another sink.uri",
    ):
        assert words in said
    assert "\n" not in said
    first.communicate("")
    assert first.returncode == 0
    assert signs(store) == []
    refuse_if_alive(store, doing=no_watching)


@pytest.mark.parametrize("buried", [True, False])
def test_the_output_of_a_killed_run_is_taken_over_at_once(store: str, hold: Hold, buried: bool) -> None:
    first = hold("run-1")
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie of ours
    if buried:
        first.wait()
    assert signs(store) == ["run-1/alive.json"]

    refuse_if_alive(store, doing=no_watching)

    assert signs(store) == []


def test_a_stopped_run_is_alive_and_its_refusal_says_how_to_go_on(store: str, hold: Hold) -> None:
    first = hold("run-1")
    first.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)

    with pytest.raises(UserError, match=f"kill -CONT {first.pid}"):
        refuse_if_alive(store, doing=no_watching)


def test_a_process_that_has_a_dead_runs_pid_is_not_that_run(tmp_path: Path) -> None:
    sign = Sign.of_this_process("run-1")
    assert sign.born is not None
    put(str(tmp_path), replace(sign, pid=os.getppid(), born=sign.born + 1))  # no parent is younger

    refuse_if_alive(str(tmp_path), doing=no_watching)

    assert signs(str(tmp_path)) == []


def test_a_run_of_this_very_process_counts_while_it_beats_and_not_when_it_has_ended(tmp_path: Path) -> None:
    put(str(tmp_path), Sign.of_this_process("run-1"))  # as though its end had met a store that was away

    with beating(str(tmp_path), "run-2"), pytest.raises(UserError, match="run-2"):
        refuse_if_alive(str(tmp_path), doing=no_watching)

    refuse_if_alive(str(tmp_path), doing=no_watching)
    assert signs(str(tmp_path)) == []


@contextmanager
def beaten(store: str, sign: Sign) -> Iterator[None]:
    """Its beats go on, as from another machine."""
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(0.01):
            count += 1
            put(store, replace(sign, beat=count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_run_elsewhere_that_beats_is_refused_whatever_its_clock_says(store: str) -> None:
    sign = replace(elsewhere("run-1"), at="2001-01-01T00:00:00.000+00:00")
    put(store, sign)

    with beaten(store, sign), pytest.raises(UserError, match="run run-1 is at work") as told:
        refuse_if_alive(store, watch_s=3600, look_s=0.01)

    assert "pid 7 on host far" in str(told.value)
    age = re.search(r"last heartbeat (\d+) s ago", str(told.value))
    assert age is not None
    assert int(age[1]) < 60  # as seen from here, not by the clock over there


def test_runs_elsewhere_that_stand_still_are_taken_over_after_the_watch(store: str) -> None:
    put(store, elsewhere("run-1"))
    put(store, replace(elsewhere("run-2"), at="2999-01-01T00:00:00.000+00:00"))
    said: list[str] = []

    refuse_if_alive(store, doing=said.append, watch_s=0.2, look_s=0.05)

    assert len(said) == 1
    assert "run-1 on far, run-2 on far" in said[0]
    assert signs(store) == []


def test_a_run_elsewhere_that_ends_while_it_is_watched_is_not_waited_for(store: str) -> None:
    put(store, elsewhere("run-1"))

    refuse_if_alive(store, doing=lambda _: storage.delete(f"{store}/runs/run-1/alive.json"), watch_s=3600)


def test_what_is_no_sign_is_left_alone(store: str) -> None:
    storage.put(f"{store}/runs/run-1/alive.json", b'{"some": "thing"}')
    storage.put(f"{store}/runs/run-2/alive.json", b"\xff")
    storage.put(f"{store}/runs/run-3/manifest.json", b"{}")

    refuse_if_alive(store, doing=no_watching)

    assert len(signs(store)) == 3


def test_beats_go_on_after_the_store_was_away_and_the_log_says_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sign = tmp_path / "runs" / "run-1" / "alive.json"
    with beating(str(tmp_path), "run-1", every_s=0.01):
        caplog.set_level(logging.WARNING)
        sign.parent.rename(tmp_path / "away")
        sign.parent.write_bytes(b"a file where a folder should be")
        until(lambda: bool(caplog.records))
        (tmp_path / "away").rename(tmp_path / "gone")
        threading.Event().wait(0.2)  # many beats, none of which is to say more
        sign.parent.unlink()
        until(sign.exists)

    assert len(caplog.records) == 1
    assert "no sign of life" in caplog.text


def test_a_run_that_may_wait_starts_when_the_one_before_it_has_ended(
    store: str, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREDECESSOR_WAIT_S", "60")
    first, told = hold("run-1"), []

    def doing(words: str) -> None:
        told.append(words)
        if first.poll() is None:
            first.communicate("")  # its cluster has drained

    refuse_if_alive(store, doing=doing, look_s=0.01)

    assert told == ["waiting for the end of a run at work on the output"]


def test_a_run_that_may_wait_is_refused_in_the_end(store: str, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREDECESSOR_WAIT_S", "0.1")
    hold("run-1")

    with pytest.raises(UserError, match="run run-1 is at work on this output"):
        refuse_if_alive(store, look_s=0.01)
