"""What Prometheus is told, and that the dashboard asks for nothing else."""

import json
import re
import urllib.request
from decimal import Decimal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.accounts.live import Live
from pipelines.accounts.metrics import families, served
from pipelines.accounts.snapshot import EngineNow, Snapshot
from pipelines.accounts.summary import Totals
from pipelines.config import MetricsConfig, UserError
from tests.conftest import free_ports

DASHBOARD = Path(__file__).parents[3] / "k8s" / "components" / "monitoring" / "grafana.json"
ENGINE = EngineNow(
    name="h:1", phase="serving", running=5, waiting=2, kv_usage=0.25, cache_hit_share=0.5, restarts=1, rows_ended=9
)
FULL = Snapshot(
    run="r1",
    job="classify",
    model="smollm2",
    elapsed_s=60,
    steady_s=50,
    rows_in=8,
    rows_ok=7,
    rows_error=1,
    errors_by_type={'odd"\n': 1},
    rows_done=9,
    rows_total=18,
    rows_total_estimated=True,
    rows_in_flight=5,
    prompt_tokens=100,
    cached_tokens=40,
    output_tokens=10,
    rows_per_s=0.5,
    tokens_per_s=6.0,
    eta_s=18.0,
    usd=Decimal("0.3"),
    usd_per_s=Decimal("0.01"),
    budget_usd=Decimal(2),
    budget_spent_usd=Decimal("0.8"),
    finish_at=2e9,
    device_s={"decode": 40.0, "idle": 10.0},
    engines=(ENGINE,),
    engines_total=1,
)


def scraped(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names_of(now: Snapshot) -> set[str]:
    return {sample.name for family in families(now) for sample in family.samples}


def test_the_dashboard_asks_for_each_metric_that_is_exported_and_for_no_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]
    asked = {name for text in expressions for name in re.findall(r"\bpipelines_\w+", text)}

    assert asked == names_of(FULL)


def test_each_panel_of_the_dashboard_has_a_place_of_its_own_and_a_data_source_that_can_be_chosen() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    taken = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + line)
        for panel in dashboard["panels"]
        for column in range(panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["h"])
    ]

    assert len(taken) == len(set(taken))
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_what_is_not_known_has_no_sample_and_what_is_zero_has_one() -> None:
    early = names_of(Snapshot(run="r1", elapsed_s=1))

    assert "pipelines_rows_total" in early
    assert not early & {
        "pipelines_eta_seconds",
        "pipelines_cost_usd",
        "pipelines_budget_usd",
        "pipelines_rows_in_flight",
    }
    assert not [name for name in early if name.startswith("pipelines_engine")]


def test_a_scrape_is_the_run_at_that_moment_and_the_port_is_free_afterwards() -> None:
    (port,) = free_ports(1)
    live = Live(run="r1", job="classify", model='a "model"\nwith a line')
    with served(live, MetricsConfig(port=port)):
        before = scraped(port)
        live.see(Totals(rows_in=3, rows_ok=2, rows_error=1, errors_by_type={'odd"\n': 1}))
        after = scraped(port)
    with served(live, MetricsConfig(port=port)):
        again = scraped(port)

    ok = ("pipelines_rows_total", (("outcome", "ok"), ("run", "r1")))
    assert (before[ok], after[ok], again[ok]) == (0, 2, 2)
    assert after["pipelines_errors_total", (("run", "r1"), ("type", 'odd"\n'))] == 1
    (info,) = [dict(labels) for name, labels in after if name == "pipelines_run_info"]
    assert info == {"run": "r1", "job_name": "classify", "model": 'a "model"\nwith a line', "state": "running"}


def test_a_port_that_is_taken_is_refused_in_one_line_and_without_one_nothing_listens() -> None:
    (port,) = free_ports(1)
    refused = rf"^metrics\.port={port} on metrics\.host=127\.0\.0\.1: .* choose another"
    with served(Live(), MetricsConfig(port=port)), pytest.raises(UserError, match=refused):
        served(Live(), MetricsConfig(port=port)).__enter__()
    with served(Live(), MetricsConfig()), pytest.raises(OSError):
        scraped(port)
