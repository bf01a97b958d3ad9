"""Receipts, totals and summaries for the tests of accounts."""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipelines.accounts.account import tokens_of
from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.cost import bill
from pipelines.accounts.summary import Summary, Totals
from pipelines.config import (
    BatchingConfig,
    ClusterConfig,
    DevicePrice,
    EngineSettings,
    Exit,
    JobConfig,
    MessageConfig,
    ModelConfig,
    OutputConfig,
    PrecisionConfig,
    PricingConfig,
    RunConfig,
    SinkConfig,
    SourceConfig,
    TrackingConfig,
    UnitConfig,
)
from pipelines.sink.receipt import Receipt
from tests.receipts import receipt as plain_receipt

PRICE = DevicePrice(usd_per_hour=Decimal("0.36"), source="a list", date="2026-10-01")
PARTS = Parts(startup=80 * NS, prefill=210 * NS, decode=7 * NS, idle=53 * NS, tail=40 * NS, shutdown=10 * NS)  # 400 s


def receipt(start: int, stop: int, *, errors: dict[str, int] | None = None, **changes: Any) -> Receipt:
    """A unit whose dead letters are these, and which cost nothing unless told otherwise."""
    dead = sum((errors or {}).values())
    counts: dict[str, Any] = {"rows_ok": stop - start - dead, "rows_error": dead, "errors_by_type": errors or {}}
    nothing = {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "device_seconds": 0.0}
    return plain_receipt(start=start, stop=stop, **(counts | nothing | changes))


def summary(**changes: Any) -> Summary:
    """The end of a run over 300 rows."""
    totals = Totals(
        units=3,
        rows_in=300,
        rows_ok=297,
        rows_error=3,
        errors_by_type={"too_long": 2, "empty": 1},
        prompt_tokens=40_000,
        cached_tokens=10_000,
        output_tokens=1_000,
        gold_rows=297,
        gold_correct=198,
    )
    values: dict[str, Any] = {
        "run_id": "run-1",
        "job": "classify",
        "model": "smollm2",
        "exit_code": Exit.DONE,
        "totals": totals,
        "output": changes.get("totals", totals),
        "startup_s": 27.1,
        "engine_start_s": 9.3,
        "first_commit_s": 31.2,
        "steady_s": 10.0,
        "bill": bill(PARTS, PRICE, tokens_of(totals), device_name=None),
        "sink_uri": "out/classify",
        "log_file": "out/logs/run-1.log",
    }
    return Summary(**(values | changes))


def run_config(folder: Path) -> RunConfig:
    """A config with a corpus and a sink below `folder`, and no tracking."""
    return RunConfig(
        job=JobConfig(
            name="classify",
            messages=(MessageConfig(role="user", content="{{ text }}"),),
            output=OutputConfig(kind="labels", labels=("good", "bad")),
        ),
        model=ModelConfig(name="smollm2", path="embedded://smollm2"),
        precision=PrecisionConfig(name="auto", dtype="auto"),
        batching=BatchingConfig(mode="continuous"),
        engine=EngineSettings(kind="simulated"),
        source=SourceConfig(uri=f"{folder}/corpus"),
        sink=SinkConfig(uri=f"{folder}/sink"),
        unit=UnitConfig(),
        tracking=TrackingConfig(uri=None, experiment="classify"),
        pricing=PricingConfig(name="on_demand", devices={"cpu": PRICE}),
        cluster=ClusterConfig(),
    )


@dataclass(frozen=True)
class HostReport:
    """What a host reports, as far as accounts look at it (actors/host_stats.py)."""

    replica: str
    phase: str
    time: float
    rows_in_flight: int = 0
    device_seconds: float = 0.0
    vain_device_seconds: float = 0.0
    rows_ended: int = 0
    rows_begun: int = 0
    start_seconds: float = 0.0
    rejected_tokens: int | None = None


def three_lives(second: int) -> list[HostReport]:
    """What three engines report so many seconds after the start; see test_attribution.py."""

    def at(replica: str, serves: int, works: tuple[int, int], vain: float = 0.0, at: int = second) -> HostReport:
        begin, end = works
        phase = "serving" if at >= serves else "starting"
        busy = max(0, min(at, end) - begin)
        return HostReport(replica, phase, at, int(begin <= at < end), float(busy), vain if busy else 0.0)

    a, c = at("a", 10, (10, 80)), at("c", 30, (50, 100), 5.0)
    if second < 40:  # b is silent from 30 on
        return [a, at("b", 20, (20, 1000), at=min(second, 30)), c]
    return [a, c, at("b2", 50, (50, 90))]
