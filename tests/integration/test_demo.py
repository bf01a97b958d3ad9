"""The demo job by the command that `make run` ends with, on a terminal: a Ray, an engine and an MLflow of its own."""

import fcntl
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import psutil
import pytest

from demo import corpus, model
from pipelines.config import Exit
from tests.runs import data, errors, ledger

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
ROWS = 64
LABELS = ("run", "rows", "accuracy", "tokens", "speed", "time", "cost", "spent on", "price", "GPU", "output", "MLflow")


@dataclass(slots=True)
class Terminal:
    """A command on a terminal of its own, of 120 columns."""

    process: "subprocess.Popen[bytes]"
    master: int
    mark: str  # in the environment of all that it starts
    shown: bytearray = field(default_factory=bytearray)

    def read(self) -> None:
        """All that it shows, until nobody has the terminal open any more."""
        while True:
            try:
                piece = os.read(self.master, 65536)
            except OSError:  # what Linux says then
                return
            self.shown += piece

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode("utf-8", "replace")).replace("\r\n", "\n")

    def orphans(self) -> list[list[str]]:
        """What it started and what lives on."""
        found = []
        for each in psutil.process_iter():
            try:
                if each.environ().get("PIPELINES_TEST_MARK") == self.mark and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each.cmdline()[:3])
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Terminal] = []

    def begin(*words: str) -> Terminal:
        model.make(model.folder())
        corpus.write(tmp_path / "out" / "corpus")
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x28\x00\x78\x00" + b"\0" * 4)  # 40 lines, 120 columns

        def on_it() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C is a signal to all that run on it

        mark = uuid.uuid4().hex
        alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pipelines.run",
                "+job=classify",
                "job.gold=sentiment",
                "cluster.num_cpus=2",
                *words,
            ],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=tmp_path,
            env={**alone, "PYTHONPATH": str(ROOT), "PIPELINES_TEST_MARK": mark, "TERM": "xterm"},
            preexec_fn=on_it,
        )
        os.close(slave)
        terminal = Terminal(process, master, mark)
        started.append(terminal)
        threading.Thread(target=terminal.read, daemon=True).start()
        return terminal

    yield begin
    for terminal in started:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()


def test_the_demo_ends_with_its_summary_and_leaves_nothing_but_what_it_names(start: Start, tmp_path: Path) -> None:
    terminal = start(f"source.limit={ROWS}", "unit.rows=16")

    assert terminal.process.wait(600) == Exit.DONE, terminal.text
    text = terminal.text
    assert terminal.orphans() == []
    lines = [line.rstrip() for line in text.splitlines()]
    for label in LABELS:
        assert any(re.match(rf"{label}  +\S", line) for line in lines), f"{label}: {text}"
    assert f"{ROWS} in = {ROWS} ok + 0 errors" in text
    accuracy = re.search(r"accuracy +([0-9.]+) %", text)
    assert accuracy and float(accuracy[1]) >= 80
    assert "no GPU" in text
    for noise in ("raylet", "ray::", "WARNING", " INFO ", "(pid="):  # Ray's and vLLM's
        assert noise not in text
    log = re.search(r"^log +(\S+)", text, re.MULTILINE)
    assert log and (tmp_path / log[1]).stat().st_size
    workers = re.search(r"(/\S+) has what engines", text)
    assert workers and any("vllm" in path.read_text(errors="replace") for path in Path(workers[1]).glob("worker-*"))
    command = next(line.strip() for line in lines if "duckdb" in line)
    opened = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "label" in opened.stdout
    rows = data(tmp_path / "out" / "classify")
    assert len(rows) == ROWS
    assert duckdb.read_parquet(str(tmp_path / "out/classify/data/*.parquet")).shape[0] == ROWS


def test_ctrl_c_finishes_what_is_in_the_engine_and_the_same_command_goes_on(start: Start, tmp_path: Path) -> None:
    sink = tmp_path / "out" / "classify"
    words = (f"source.limit={4 * ROWS}", "unit.rows=16", "engine.units_in_flight=1", "tracking=none", "grace_s=120")
    terminal = start(*words)
    committed = sink / "ledger" / "_delta_log" / "00000000000000000001.json"  # 0 makes the table
    while not committed.exists():
        assert terminal.process.poll() is None, terminal.text
        time.sleep(0.05)
    os.write(terminal.master, b"\x03")

    assert terminal.process.wait(300) == Exit.STOPPED, terminal.text
    assert terminal.orphans() == []
    first = data(sink)
    assert 16 <= len(first) < 4 * ROWS
    assert "finishing what is in the engines" in terminal.text

    assert start(*words).process.wait(600) == Exit.DONE
    assert len(data(sink)) + len(errors(sink)) == 4 * ROWS
    assert sum(receipt["rows_in"] for receipt in ledger(sink)) == 4 * ROWS  # and none was paid twice
    assert [
        row for row in data(sink) if (row["_shard"], row["_row"]) in {(r["_shard"], r["_row"]) for r in first}
    ] == first
