"""The search for batch sizes against engines whose speed is a formula, and what is kept of it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine import EngineConfig
from pipelines import engine_choice, tuned
from pipelines.compose import compose
from pipelines.engine_choice import Hardware, choose, device_name, fit_of
from pipelines.job.model import cache_dir, resolve
from pipelines.tuning import Sizes, Trial, best, first_sizes, noise, search

MOST = Sizes(max_num_seqs=1024, max_num_batched_tokens=32768)
GRID = [Sizes(max_num_seqs=2**seqs, max_num_batched_tokens=2**tokens) for seqs in range(11) for tokens in range(6, 16)]


class Engine:
    """Speed grows with both sizes up to a knee, sinks slowly behind it, and memory ends at some number of rows."""

    def __init__(self, seqs_knee: float, tokens_knee: float, dies_above: int = 10**9) -> None:
        self.knees = {"max_num_seqs": seqs_knee, "max_num_batched_tokens": tokens_knee}
        self.dies_above = dies_above
        self.runs = 0

    def speed(self, sizes: Sizes) -> float | None:
        if sizes.max_num_seqs > self.dies_above:
            return None
        shares: list[float] = []
        for name, knee in self.knees.items():
            ratio = getattr(sizes, name) / knee
            shares.append(ratio / (1 + ratio) if ratio < 1 else 0.5 * ratio**-0.15)
        return 1e4 * float(math.prod(shares))

    def measure(self, sizes: Sizes) -> Trial:
        self.runs += 1
        speed = self.speed(sizes)
        return Trial(sizes=sizes, tokens_per_s=speed, why=None if speed else "out of memory")


@given(
    seqs_knee=st.floats(4, 512),
    tokens_knee=st.floats(256, 16384),
    first=st.sampled_from([sizes for sizes in GRID if 4 <= sizes.max_num_seqs <= 256]),
    dies_above=st.sampled_from([1, 8, 100, 10**9]),
)
def test_what_is_found_is_near_the_best_of_the_whole_grid_at_a_quarter_of_its_cost(
    seqs_knee: float, tokens_knee: float, first: Sizes, dies_above: int
) -> None:
    engine = Engine(seqs_knee, tokens_knee, dies_above)

    found = best(search(engine.measure, first, MOST))

    assert found is not None and found.tokens_per_s is not None
    assert found.tokens_per_s >= 0.95 * max(engine.speed(sizes) or 0 for sizes in GRID)
    assert engine.runs <= len(GRID) / 4


def test_a_candidate_that_dies_is_a_result_and_none_larger_is_tried_after_it() -> None:
    engine = Engine(512, 8192, dies_above=100)

    trials = search(engine.measure, Sizes(max_num_seqs=64, max_num_batched_tokens=4096), MOST)

    died = [trial.sizes.max_num_seqs for trial in trials if trial.tokens_per_s is None]
    assert died and max(trial.sizes.max_num_seqs for trial in trials) == max(died) == 128
    assert next(trial for trial in trials if trial.tokens_per_s is None).why == "out of memory"
    found = best(trials)
    assert found is not None and 64 <= found.sizes.max_num_seqs <= 100


def test_a_first_candidate_that_dies_is_followed_by_smaller_ones_until_one_lives_or_none_can() -> None:
    assert best(search(Engine(2, 256, dies_above=3).measure, Sizes(max_num_seqs=64, max_num_batched_tokens=4096), MOST))

    nothing = search(Engine(2, 256, dies_above=0).measure, Sizes(max_num_seqs=4, max_num_batched_tokens=256), MOST)
    assert [trial.sizes.max_num_seqs for trial in nothing][:3] == [4, 2, 1]
    assert best(nothing) is None


def test_the_best_is_measured_twice_and_of_equal_ones_the_smallest_is_taken() -> None:
    small, large = (Sizes(max_num_seqs=n, max_num_batched_tokens=512) for n in (8, 16))
    trials = [
        Trial(sizes=small, tokens_per_s=99),
        Trial(sizes=large, tokens_per_s=103),
        Trial(sizes=large, tokens_per_s=99),
    ]

    found = best(trials)

    assert found == Trial(sizes=small, tokens_per_s=99)
    engine = Engine(32, 2048)
    tried = search(engine.measure, Sizes(max_num_seqs=32, max_num_batched_tokens=2048), MOST)
    highest = max(tried, key=lambda trial: trial.tokens_per_s or 0.0)
    assert [trial.sizes for trial in tried].count(highest.sizes) == 2


def test_a_gain_within_what_two_runs_of_one_size_differ_by_is_none() -> None:
    first = Sizes(max_num_seqs=8, max_num_batched_tokens=512)
    said = iter([100.0, 110.0])

    def measure(sizes: Sizes) -> Trial:
        return Trial(sizes=sizes, tokens_per_s=next(said, 112.0))  # whatever its sizes

    trials = search(measure, first, MOST)

    assert noise(trials) == pytest.approx(1.1)
    assert {trial.sizes.max_num_seqs for trial in trials} == {8, 16, 4, 11, 6}  # a step to each side, and no second one
    found = best(trials)
    assert found is not None and found.sizes.max_num_seqs <= 8


def test_the_first_sizes_fit_half_of_the_memory_and_the_bounds() -> None:
    sizes = first_sizes(kv_capacity_tokens=20_000, tokens_per_row=200, most=MOST)

    assert sizes == Sizes(max_num_seqs=32, max_num_batched_tokens=1024)
    assert first_sizes(10**9, 200, MOST).within(MOST)
    assert first_sizes(10, 200, MOST).max_num_seqs == 1


def test_sizes_that_were_tuned_hold_for_a_run_of_that_job_on_that_hardware_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["+job=classify", "engine=simulated", f"source.uri={tmp_path}", "sink.uri=elsewhere"]
    (config,) = compose(words)
    files = resolve(config.model, cache=cache_dir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here, there = Hardware(device="cpu", cores=2), Hardware(device="cpu", cores=8)

    def chosen(*more: str, hardware: Hardware = here) -> EngineConfig:
        (config,) = compose([*words, *more])
        return choose(config, files, hardware, path="none")

    before = chosen()
    says = tuned.holds_for(config, before, device=device_name(here))
    file = tuned.keep(
        cache_dir(), says, Sizes(max_num_seqs=7, max_num_batched_tokens=777), tokens_per_s=1.0, at="2026-11-24"
    )

    assert chosen() == replace(before, max_num_seqs=7, max_num_batched_tokens=777)
    assert chosen("batching.max_num_seqs=5").max_num_seqs == 5
    assert chosen("batching=static").max_num_seqs == before.max_num_seqs
    assert chosen("engine.threads=3").max_num_seqs == before.max_num_seqs
    assert chosen(hardware=there).max_num_seqs == before.max_num_seqs
    file.write_text("{}")
    assert chosen() == before


def test_each_engine_of_a_pool_has_the_sizes_tuned_for_the_gpu_of_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["+job=classify", "engine=simulated", "engine.device=gpu", f"source.uri={tmp_path}", "sink.uri=elsewhere"]
    (config,) = compose(words)
    files = resolve(config.model, cache=cache_dir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine = choose(config, files, Hardware(device="gpu", gpu_name="H100", gpus=1), path="none")
    assert fit_of(config, engine) is None  # nothing was tuned

    for device, seqs in (("H100", 512), ("L4", 48)):
        says = tuned.holds_for(config, engine, device=device)
        sizes = Sizes(max_num_seqs=seqs, max_num_batched_tokens=4096)
        tuned.keep(cache_dir(), says, sizes, tokens_per_s=1.0, at="2026-12-01")
    (another,) = compose([*words, "job.name=another"])  # tuned on an A100, but with other rows
    says = tuned.holds_for(another, engine, device="A100")
    tuned.keep(cache_dir(), says, Sizes(max_num_seqs=3, max_num_batched_tokens=64), tokens_per_s=1.0, at="2026-12-01")

    fit = fit_of(config, choose(config, files, Hardware(device="gpu", gpu_name="H100", gpus=1), path="none"))

    assert fit is not None
    for name, seqs in (
        ("H100", 512),
        ("L4", 48),
        ("A100", config.model.max_num_seqs),
        (None, config.model.max_num_seqs),
    ):
        monkeypatch.setattr(engine_choice, "detect", lambda name=name: Hardware(device="gpu", gpu_name=name, gpus=1))
        assert fit(engine).max_num_seqs == seqs
    (said,) = compose([*words, "batching.max_num_seqs=5"])
    assert fit_of(said, engine) is None
