"""Signals to a real driver with a real Ray under it: what the terminal shows, how it exits, what it leaves running."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

# A driver as run.py is one, reduced to its signals: Ray at work, and a loop that asks whether to stop.
DRIVER = """
import logging, os, sys, time, warnings
from pathlib import Path
from pipelines.accounts.budget import Stop
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray
from pipelines.accounts.summary import Totals

log, grace_s, drain_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
stop = Stop(grace_s=grace_s, max_error_rate=0)
with quiet_ray(log) as keywords, Progress(every_s=3600) as progress:
    import ray
    try:
        with stop.install():
            progress.note("initializing")
            ray.init(address="local", num_cpus=2, include_dashboard=False, **keywords())
            stop.arm()

            @ray.remote(num_cpus=0)
            def work(seconds):
                print("a worker says", flush=True)
                time.sleep(seconds)

            ray.get(work.remote(0))
            warnings.warn("a library warns", stacklevel=1)
            logging.getLogger("ray.data").warning("ray data says")
            os.write(2, b"the core writes\\n")
            progress.note("ready")
            while not stop.requested():
                ray.get(work.remote(0.05))
            progress.note(f"draining after {stop.reason}")
            ray.get(work.remote(drain_s))
            progress.note("drained")
    except KeyboardInterrupt:
        progress.note(f"at once after {stop.reason}")
    finally:
        ray.shutdown()
sys.exit(stop.exit_code(Totals()))
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(*, grace_s: float, drain_s: float = 0.0) -> subprocess.Popen[str]:
        words = [str(tmp_path / "logs" / "run.log"), str(grace_s), str(drain_s)]
        driver = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(DRIVER), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            # Ray gives its processes 30 s, too few on a machine that does much else at the moment.
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_raylet_start_wait_time_s": "240"},
            start_new_session=True,  # a process group of its own, as a terminal gives it
        )
        started.append(driver)
        return driver

    yield begin
    for driver in started:
        if driver.poll() is None:
            driver.kill()
        driver.communicate()  # waits, and closes the pipe


def until(driver: subprocess.Popen[str], words: str) -> list[str]:
    """The driver's lines up to the one with these words."""
    assert driver.stderr is not None
    lines: list[str] = []
    for line in driver.stderr:
        lines.append(line.rstrip("\n"))
        if words in line:
            return lines
    raise AssertionError(f"the driver ended before {words!r}: {lines}")


def rest(driver: subprocess.Popen[str]) -> list[str]:
    assert driver.stderr is not None
    return driver.stderr.read().splitlines()


def assert_none_left(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert [process.cmdline()[:3] for process in alive] == []


@pytest.mark.slow  # with Ray's start and a signal to all its processes it depends on how busy the machine is
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_drains_and_ends_in_4_and_the_terminal_shows_our_lines_alone(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    driver = start(grace_s=120)
    shown = until(driver, "ready")[-1:]
    children = psutil.Process(driver.pid).children(recursive=True)

    if number is signal.SIGINT:
        os.killpg(driver.pid, number)  # Ctrl-C reaches Ray's processes as well
    else:
        driver.send_signal(number)
    shown += rest(driver)

    assert driver.wait(60) == 4
    assert children
    assert_none_left(children)
    assert shown[:2] == ["ready", f"draining after {number.name}"]
    assert shown[2] == "drained"
    assert len(shown) == 4  # and the closing line
    log = (tmp_path / "logs" / "run.log").read_text()
    for said in ("a library warns", "ray data says", "the core writes", "Started a local Ray instance"):
        assert said in log


def test_a_second_sigint_ends_at_once_although_the_grace_is_long(start: Start) -> None:
    driver = start(grace_s=3600, drain_s=3600)
    until(driver, "ready")
    children = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGINT)
    until(driver, "draining")

    began = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)
    shown = rest(driver)

    assert driver.wait(60) == 4
    assert time.monotonic() - began < 60
    assert "at once after SIGINT" in shown
    assert_none_left(children)


def test_the_end_of_the_grace_ends_a_drain_that_hangs(start: Start) -> None:
    driver = start(grace_s=0.5, drain_s=3600)
    until(driver, "ready")
    driver.send_signal(signal.SIGTERM)
    shown = rest(driver)

    assert driver.wait(60) == 4
    assert "at once after SIGTERM" in shown


@pytest.mark.slow  # Ray exchanges the handler at some moment of its start, and a signal just then can be lost
def test_a_sigterm_while_ray_starts_and_has_taken_it_for_itself_is_a_stop_all_the_same(start: Start) -> None:
    driver = start(grace_s=60)
    until(driver, "initializing")
    ray_processes: list[psutil.Process] = []
    while not ray_processes:
        assert driver.poll() is None
        ray_processes = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    shown = rest(driver)

    assert driver.wait(60) == 4
    assert "at once after SIGTERM" in shown
    assert_none_left(ray_processes)
