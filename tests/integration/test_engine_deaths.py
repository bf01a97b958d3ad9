"""Processes of engines die, hang and do not start, on a real Ray: every row is answered or named, and no other."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, DataContext
from tokenizers import Tokenizer

from actors.control import Switch
from actors.engine import Constraint, EngineConfig, EngineLost, Sampling, SimulatedFaults
from actors.exchange import PROMPTS, from_ipc, to_ipc
from actors.host import EngineHost
from actors.host_stats import HostStats
from actors.liveness import look
from actors.window import Window
from demo import model
from pipelines.config import Exit, RunFailed
from tests.runs import data, errors, job, write_texts

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]
POISON, STOPS, HANGS, BAD = 666, 13, 14, 4
SILENT_S = 8.0  # longer than a process at work is ever silent on a busy machine
LABELS = ("good", "bad")


@pytest.fixture(autouse=True)
def _a_row_is_a_block() -> Iterator[None]:
    context = DataContext.get_current()
    before = (context.target_max_block_size, context.enable_progress_bars)
    context.target_max_block_size, context.enable_progress_bars = 1, False
    yield
    context.target_max_block_size, context.enable_progress_bars = before


def units(table: pa.Table) -> Iterator[pa.Table]:
    for name, tokens in zip(table["name"].to_pylist(), table["tokens"].to_pylist(), strict=True):
        prompts = pa.table(
            {
                "_key": [f"{name}-{line}" for line in range(len(tokens))],
                "_prompt": [[token, 2] for token in tokens],
                "_error_type": pa.nulls(len(tokens), pa.string()),
                "_error": pa.nulls(len(tokens), pa.string()),
            },
            schema=PROMPTS,
        )
        yield pa.table({"unit": [name], "prompts": pa.array([to_ipc(prompts)], pa.large_binary())})


def answered(
    todo: dict[str, list[int]],
    faults: dict[str, Any],
    *,
    replicas: int = 1,
    units_in_flight: int = 2,
    silent_s: float = 60.0,
    meanwhile: Callable[[list[HostStats]], None] = lambda hosts: None,
    **options: Any,
) -> dict[str, list[dict[str, Any]]]:
    """The ANSWERS of each unit; the driver looks at the hosts as a run does."""
    switch = Switch.create(silent_s=silent_s)
    engine = EngineConfig(
        kind="simulated",
        model="none",
        model_name="none",
        max_num_seqs=8,
        simulated=SimulatedFaults(**{"bad_token_id": BAD, "hang_token_id": HANGS, **faults}),
    )
    kwargs = {
        "engine": engine,
        "sampling": Sampling(max_tokens=4),
        "constraint": Constraint(choices=LABELS),
        "window": Window(),
        "max_restarts": 20,
        "poll_s": 0.1,
        "report": switch.report,
        "witness": switch.witness(),
        **options,
    }
    source = ray.data.from_arrow(pa.table({"name": list(todo), "tokens": list(todo.values())}))
    flow = source.map_batches(units, batch_size=None, batch_format="pyarrow", num_cpus=0.5).map_batches(
        EngineHost,
        fn_constructor_kwargs=kwargs,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=replicas,
            max_tasks_in_flight_per_actor=units_in_flight * 2,
            max_concurrent_calls_per_actor=units_in_flight,
        ),
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
    )
    ended: list[Any] = []

    def pull() -> None:
        try:
            ended.append(list(flow.iter_rows()))
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            ended.append(error)

    puller = threading.Thread(target=pull, daemon=True)
    puller.start()
    while puller.is_alive():
        look(switch)
        meanwhile(list(switch.stats().values()))
        puller.join(0.1)
    if isinstance(ended[0], BaseException):
        raise ended[0]
    names = [row["unit"] for row in ended[0]]
    assert sorted(names) == sorted(todo)
    return {row["unit"]: from_ipc(row["answers"]).to_pylist() for row in ended[0]}


def error_types(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["_error_type"] for row in rows]


def expected(tokens: list[int], error_type: str = "poison") -> list[str | None]:
    kinds = {POISON: error_type, STOPS: error_type, BAD: "engine"}
    return [kinds.get(token) for token in tokens]


def starts(file: Path) -> int:
    return len(file.read_text().splitlines())


@pytest.mark.parametrize("by", ["SIGKILL", pytest.param("SIGSEGV", marks=pytest.mark.slow)])
def test_a_row_that_kills_the_process_is_found_in_four_more_starts_and_all_others_are_answered(
    tmp_path: Path, by: str
) -> None:
    todo = {f"u{number}": [1] * 30 for number in range(6)}
    todo["u2"][17], todo["u4"][3] = POISON, BAD

    rows = answered(
        todo, {"kill_token_id": POISON, "kill_signal": by, "starts_file": str(tmp_path / "starts"), "latency_s": 0.01}
    )

    for name, tokens in todo.items():
        assert error_types(rows[name]) == expected(tokens), name
        assert [row["_answer"] in LABELS for row in rows[name]] == [token == 1 for token in tokens]
    dead = rows["u2"][17]
    assert dead["_attempts"] == 4
    assert "4 engines were lost with this row, the last 2 with no other row" in dead["_error"]
    assert "SIGKILL" in dead["_error"] if by == "SIGKILL" else "died of SIGSEGV" in dead["_error"]
    assert starts(tmp_path / "starts") == 1 + 4


@pytest.mark.slow  # nine starts
def test_three_such_rows_in_one_unit_share_the_first_starts(tmp_path: Path) -> None:
    todo = {"a": [1] * 4 + [POISON, 1, POISON, POISON] + [1] * 4, "b": [1] * 12}

    rows = answered(todo, {"kill_token_id": POISON, "starts_file": str(tmp_path / "starts"), "latency_s": 0.01})

    assert {name: error_types(each) for name, each in rows.items()} == {
        name: expected(tokens) for name, tokens in todo.items()
    }
    # All three share the first death, and the second if the journal had heard of them all: the process dies with what
    # it had still to say. One death more for each that it had not.
    assert 1 + 2 + 3 * 2 <= starts(tmp_path / "starts") <= 1 + 1 + 3 + 3 * 2


def test_processes_that_die_for_their_own_reasons_condemn_no_row() -> None:
    todo = {f"u{number}": [1] * 20 for number in range(8)}

    rows = answered(todo, {"kill_every_rows": 70, "latency_s": 0.01})

    assert [error for each in rows.values() for error in error_types(each)] == [None] * 160
    assert all(row["_answer"] in LABELS for each in rows.values() for row in each)


@pytest.mark.slow
def test_five_processes_killed_from_outside_condemn_no_row() -> None:
    todo = {f"u{number}": [1] * 20 for number in range(12)}
    chosen = random.Random(4)
    killed: list[str] = []

    def kill_now_and_then(hosts: list[HostStats]) -> None:
        busy = [host for host in hosts if host.rows_in_flight and host.replica not in killed]
        if busy and len(killed) < 5 and chosen.random() < 0.5:
            victim = chosen.choice(busy)
            killed.append(victim.replica)
            os.kill(int(victim.replica.rpartition(":")[2]), signal.SIGKILL)

    rows = answered(todo, {"latency_s": 0.3}, replicas=2, meanwhile=kill_now_and_then)

    assert len(killed) == 5
    assert [error for each in rows.values() for error in error_types(each)] == [None] * 240


def test_an_engine_that_kills_its_process_at_whatever_row_is_given_up_with_the_reason(tmp_path: Path) -> None:
    faults = {"kill_every_rows": 1, "kill_signal": "SIGSEGV", "starts_file": str(tmp_path / "starts")}

    with pytest.raises(EngineLost, match=r"engines in a row were lost before any row was answered.*died of SIGSEGV"):
        answered({"a": [1] * 10, "b": [1] * 10}, faults)

    assert starts(tmp_path / "starts") <= 3


@pytest.mark.slow
def test_the_restarts_of_a_replica_are_capped_over_all_its_processes(tmp_path: Path) -> None:
    faults = {"kill_every_rows": 40, "latency_s": 0.01, "starts_file": str(tmp_path / "starts")}
    todo = {f"u{number}": [1] * 20 for number in range(20)}

    with pytest.raises(
        EngineLost, match=r"within an hour, whatever the reason; engine\.max_restarts_per_hour allows 2"
    ):
        answered(todo, faults, max_restarts_per_hour=2)

    assert starts(tmp_path / "starts") == 3


def test_a_stopped_process_is_found_and_another_goes_on_with_its_units() -> None:
    todo = {f"u{number}": [1] * 20 for number in range(4)}
    stopped: list[int] = []

    def stop_one(hosts: list[HostStats]) -> None:
        busy = [host for host in hosts if host.rows_in_flight]
        if busy and not stopped:
            stopped.append(int(busy[0].replica.rpartition(":")[2]))
            os.kill(stopped[0], signal.SIGSTOP)

    rows = answered(todo, {"latency_s": 0.3}, silent_s=SILENT_S, meanwhile=stop_one)

    assert len(stopped) == 1
    assert [error for each in rows.values() for error in error_types(each)] == [None] * 80
    with pytest.raises(ProcessLookupError):
        os.kill(stopped[0], 0)


def test_a_row_that_stops_the_process_is_a_dead_letter_of_type_timeout(tmp_path: Path) -> None:
    todo = {"a": [1] * 9 + [STOPS], "b": [1] * 10}

    rows = answered(
        todo, {"stop_token_id": STOPS, "starts_file": str(tmp_path / "starts"), "latency_s": 0.01}, silent_s=SILENT_S
    )

    assert {name: error_types(each) for name, each in rows.items()} == {
        name: expected(tokens, "timeout") for name, tokens in todo.items()
    }
    assert "no report for" in rows["a"][9]["_error"]
    assert starts(tmp_path / "starts") == 1 + 4


@pytest.mark.slow
def test_a_start_that_kills_the_process_once_is_tried_again(tmp_path: Path) -> None:
    rows = answered({"a": [1] * 5}, {"crash_starts": 1, "starts_file": str(tmp_path / "starts")})

    assert error_types(rows["a"]) == [None] * 5
    assert starts(tmp_path / "starts") == 2


def test_a_run_whose_engine_never_starts_ends_after_two_tries_with_the_signal(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [["a", "b"]])
    faults = [f"engine.simulated.starts_file={tmp_path / 'starts'}", "engine.simulated.crash_starts=100"]

    with pytest.raises(
        RunFailed, match=r"2 processes in a row died before their engine had started; .*died of SIGSEGV"
    ) as failed:
        job(*faults, "engine.simulated.kill_signal=SIGSEGV", source=tmp_path / "in", sink=tmp_path / "out")

    assert "\n" not in str(failed.value)
    assert starts(tmp_path / "starts") == 2


def test_a_run_ends_a_row_that_kills_processes_as_one_dead_letter(tmp_path: Path) -> None:
    words = Tokenizer.from_file(str(model.folder() / "tokenizer.json"))
    (token,) = words.encode(" zebra", add_special_tokens=False).ids
    texts: list[str | None] = [f"text {number}" for number in range(60)]
    texts[37] = "a zebra crossed"
    write_texts(tmp_path / "in", [texts])

    exit_code = job(
        *("unit.rows=20", "max_error_rate=0.5", f"engine.simulated.kill_token_id={token}"),
        source=tmp_path / "in",
        sink=tmp_path / "out",
    )

    assert exit_code is Exit.DONE
    (dead,) = errors(tmp_path / "out")
    assert (dead["_row"], dead["_error_type"], dead["_attempts"]) == (37, "poison", 4)
    assert sorted([row["_row"] for row in data(tmp_path / "out")] + [37]) == list(range(60))
