"""Fleet: the process that forks drivers, and each driver as the campaign sees it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import seams
from tests.faults.driver import Order, log_name

ROOT = Path.cwd()
END_S = 240.0  # in which every run must have ended


class Stuck(AssertionError):
    """A run did not end."""


@dataclass(eq=False)
class Driver:
    """A run under way, or ended."""

    number: int
    name: str
    folder: Path
    armoury: Path  # where its faults lie
    pid: int = 0
    code: int | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, seconds: float = END_S) -> int:
        """The exit code; negative: the signal that ended it."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.code is not None, seconds):
                raise Stuck(f"{self.name} (pid {self.pid}) has not ended after {seconds:.0f} s: {self.log()[-1500:]}")
        assert self.code is not None
        return self.code

    def wait_until(self, words: str, seconds: float = END_S) -> bool:
        """Whether a file that tells of fired faults, or the log, holds these words before the driver ends."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if words in self.log() or any(words in line for line in seams.fired(self.armoury)):
                return True
            if self.code is not None:
                return False
            time.sleep(0.02)
        raise Stuck(f"{self.name}: no {words!r} after {seconds:.0f} s: {self.log()[-1500:]}")

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def log(self) -> str:
        path = self.folder / log_name(self.number)
        return path.read_text(errors="replace") if path.exists() else ""


class Drivers:
    """The process that forks drivers, and those that it has forked."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )
        self._drivers: dict[int, Driver] = {}
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["ready"]
        threading.Thread(target=self._hear, daemon=True).start()

    def start(self, order: Order, name: str) -> Driver:
        driver = Driver(order.number, name, Path(order.folder), Path(order.environment[seams.VARIABLE]))
        self._drivers[order.number] = driver
        assert self._process.stdin is not None
        self._process.stdin.write(order.to_json() + "\n")
        self._process.stdin.flush()
        with driver.changed:
            assert driver.changed.wait_for(lambda: driver.pid, 30)
        return driver

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            driver = self._drivers[news["number"]]
            with driver.changed:
                driver.pid = news.get("pid", driver.pid)
                driver.code = news.get("code")
                driver.changed.notify_all()
