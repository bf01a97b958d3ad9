"""Which machine a plan reckons with, and a run held against it."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.cost import Tokens, bill
from pipelines.accounts.summary import Totals
from pipelines.compose import compose
from pipelines.config import DevicePrice
from pipelines.engine_choice import detect
from pipelines.machine import ceiling_of, machine
from pipelines.preparation import Prepared, survey
from tests.runs import LABELS, write_texts
from tests.unit.job.models import bytes_bpe


def prepared(folder: Path, *overrides: str) -> Prepared:
    """A survey of a small model's folder on this machine's CPU."""
    write_texts(folder / "in", [["a"]])
    model = bytes_bpe(folder / "model")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | sizes))
    words = [LABELS, "tracking=none", f"source.uri={folder / 'in'}", f"sink.uri={folder / 'out'}"]
    words += [f"model.path={model}", "model.max_model_len=512", "engine.device=cpu", *overrides]
    (config,) = compose(words)
    return survey(config, hardware=detect, doing=lambda _: None)


def test_a_run_measures_nothing_and_knows_the_cpu_once_a_plan_has_measured_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = prepared(tmp_path)
    price = DevicePrice(usd_per_hour=Decimal(1), source="a list", date="2026-11-23")
    paid = bill(Parts(prefill=8 * NS, decode=2 * NS), price, Tokens(), device_name=None)
    totals = Totals(units=1, rows_in=10, rows_ok=10, prompt_tokens=1000, output_tokens=20)

    before = ceiling_of(found, totals, 10.0, paid, None)
    measured = machine(found, measure=True)
    after = ceiling_of(found, totals, 10.0, paid, None)

    assert before.limits is None
    assert before.achieved is None
    assert before.bottleneck is not None
    assert before.bottleneck.part == "prefill"
    assert measured.shape is not None
    assert after.limits is not None
    assert after.limits.device == measured.device
    assert after.achieved is not None
    assert after.achieved.mfu == after.limits.compute_s / 10.0


def test_a_cpu_keeps_the_best_of_its_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = prepared(tmp_path)
    machine(found, measure=True)
    kept = tmp_path / "cache" / "batch-pipelines" / "cpu.json"
    plain = json.loads(kept.read_text())
    kept.write_text(json.dumps(plain | {"flops": {"float32": 1e15}, "bytes_per_s": 1.0}))

    again = machine(found, measure=True).device

    assert again is not None
    assert again.flops["float32"] == 1e15
    assert again.bytes_per_s > 1.0


def test_the_simulated_engine_has_neither_sizes_nor_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    found = machine(prepared(tmp_path, "engine=simulated"), measure=True)

    assert (found.shape, found.device) == (None, None)
    assert not (tmp_path / "cache" / "batch-pipelines" / "cpu.json").exists()
