"""What answers are like: sums over receipts, and how far apart two of them are, by figures worked out by hand."""

from dataclasses import replace
from math import log, log2
from pathlib import Path

import numpy as np
import pytest

from pipelines.accounts import alert_figures, closing
from pipelines.accounts.agreement import calibration_error, classes, macro_f1
from pipelines.accounts.distances import holm, homogeneity, js, psi
from pipelines.accounts.panel import UNITS, changed, panel
from pipelines.accounts.quality import SIGNIFICANT, Measures, drift
from pipelines.accounts.quality_files import FILE, Quality, at_the_end, earlier, of_run
from pipelines.alert_config import METRICS
from pipelines.sink.measures import OUTSIDE, Confident, Counts
from tests.accounts_samples import summary
from tests.receipts import receipt
from tests.report_outputs import opened, unit


def test_the_stability_index_by_hand() -> None:
    # (0.7 - 0.5) ln(0.7 / 0.5) + (0.3 - 0.5) ln(0.3 / 0.5) = 0.2 * 0.336472 + 0.2 * 0.510826
    assert psi([70, 30], [50, 50]) == pytest.approx(0.16945957, abs=1e-8)
    assert psi([50, 50], [70, 30]) == psi([70, 30], [50, 50])
    assert psi([7, 3], [700, 300]) == 0.0
    # The empty bin counts as half a row of ten: (0.05 - 0.5) ln(0.05 / 0.5) + (1 - 0.5) ln(1 / 0.5)
    assert psi([0, 10], [5, 5]) == pytest.approx(0.45 * log(10) + 0.5 * log(2))
    assert psi([3, 0, 7], [30, 0, 70]) == 0.0  # empty on both sides: no bin at all
    assert psi([0, 0], [5, 5]) is None


def test_the_jensen_shannon_divergence_by_hand() -> None:
    # Shares 3/4, 1/4 and 1/4, 3/4, middle 1/2: 2 * (3/8 log2(3/2) + 1/8 log2(1/2))
    assert js([3, 1], [1, 3]) == pytest.approx(0.75 * log2(1.5) - 0.25)
    assert js([4, 0], [0, 9]) == 1.0
    assert js([4, 4], [9, 9]) == 0.0
    assert js([], []) is None


def test_the_test_of_homogeneity_by_hand() -> None:
    # All expect 50 but for 60 and 40: chi-squared 4 * 10^2 / 50 = 8 over 1 degree of freedom
    assert homogeneity([60, 40], [40, 60]) == pytest.approx(0.0046777, abs=1e-7)
    # Bins of 2 and 1 expect too little, and become one of 3 that still does, so it goes to the smallest of the rest
    assert homogeneity([60, 38, 1, 1], [40, 59, 1, 0]) == homogeneity([60, 40], [40, 60])
    # 3 of 10 against none of 10, exactly: 2 * C(10,3) / C(20,3) = 240 / 1140
    assert homogeneity([3, 7], [0, 10]) == pytest.approx(240 / 1140)
    assert homogeneity([10], [20]) is None
    assert homogeneity([0, 0], [1, 2]) is None


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


COUNTS = Counts(
    rows=5,
    labels={"label": {"good": 2, "bad": 3}},
    others={"label": 1},
    prompt_tokens=(0, 1, 4),
    output_tokens=(0, 5),
    confidence=(Confident(), Confident(5, 4_500_000, 4, 3_700_000, 3)),
    confusion={"good": {"good": 2, "bad": 1}, "bad": {"bad": 1}},
    refusals=0,
)


def test_counts_add_up_and_survive_json() -> None:
    assert Counts.from_json(COUNTS.to_json()) == COUNTS
    assert Counts.from_json(Counts().to_json()) == Counts()
    assert COUNTS + Counts() == COUNTS
    other = Counts(rows=2, labels={"label": {"good": 1, "odd": 1}}, prompt_tokens=(1, 0, 0, 1), refusals=None)
    both = COUNTS + other
    assert both == other + COUNTS
    assert (both.rows, both.labels["label"]) == (7, {"good": 3, "bad": 3, "odd": 1})
    assert (both.prompt_tokens, both.refusals) == ((1, 1, 4, 1), 0)
    assert (COUNTS + COUNTS).confidence[1] == Confident(10, 9_000_000, 8, 7_400_000, 6)


def test_measures_sum_receipts_and_what_was_not_measured_is_absent() -> None:
    measured = receipt(stop=6, rows_ok=5, rows_error=1, errors_by_type={"empty": 1}, gold_rows=4, gold_correct=3)
    found = Measures.of([replace(measured, measures=COUNTS.to_json()), receipt(stop=4)])
    assert (found.rows_in, found.rows_ok, found.rows_error, found.counts) == (10, 9, 1, COUNTS)
    assert (found.error_rate, found.accuracy, found.refusal_rate) == (0.1, 0.75, 0.0)
    assert Measures.from_plain(found.to_plain()) == found
    nothing = Measures.of([receipt(stop=4)])
    assert (nothing.accuracy, nothing.refusal_rate) == (None, None)

    apart = drift(found, nothing)
    assert (apart.labels_psi, apart.lengths_js, apart.accuracy_change, apart.significant_psi) == (None,) * 4
    assert apart.error_rate_change == 0.1


def answered(seed: int, rows: int, shares: tuple[float, float, float], *, errors: float = 0.02) -> Measures:
    """A run's rows as a seeded draw: three labels with these shares, lengths and confidences, and dead letters."""
    draw = np.random.default_rng(seed)
    dead = int(draw.binomial(rows, errors))
    counts = draw.multinomial(rows - dead, shares).tolist()
    sure = draw.multinomial(rows - dead, (0.1, 0.3, 0.6)).tolist()
    return Measures(
        rows_in=rows,
        rows_ok=rows - dead,
        rows_error=dead,
        counts=Counts(
            rows=rows - dead,
            labels={"label": dict(zip(("bad", "good", "odd"), counts, strict=True))},
            prompt_tokens=tuple(draw.multinomial(rows - dead, (0.2, 0.5, 0.3)).tolist()),
            output_tokens=tuple(draw.multinomial(rows - dead, (0.0, 0.5, 0.5)).tolist()),
            confidence=tuple(Confident(n, n * 900_000) for n in sure),
        ),
    )


@pytest.mark.parametrize("rows", [60, 2_000, 1_000_000])
def test_runs_of_one_mix_seldom_look_like_drift(rows: int) -> None:
    """Of 400 pairs at most 5 % (here expected: 1 %) are taken for drift, however few or many rows they have."""
    mix = (0.6, 0.35, 0.05)
    pairs = [drift(answered(2 * seed, rows, mix), answered(2 * seed + 1, rows, mix)) for seed in range(400)]
    assert sum(1 for one in pairs if one.significant_psi) <= 0.05 * len(pairs)
    assert sum(1 for one in pairs if min(one.p_values.values()) < 0.05) <= 0.07 * len(pairs)  # 5 % and chance


def test_a_shifted_mix_of_labels_is_drift_of_the_labels_and_of_nothing_else() -> None:
    found = drift(answered(1, 2_000, (0.3, 0.6, 0.1)), answered(2, 2_000, (0.6, 0.35, 0.05)))
    assert {name for name, p in found.p_values.items() if p < SIGNIFICANT} == {"labels.label"}
    assert found.labels_psi is not None
    assert found.labels_psi > 0.25
    assert found.significant_psi == found.labels_psi
    assert found.lengths_psi is not None
    assert found.lengths_psi < 0.01


def test_precision_recall_and_f1_by_hand() -> None:
    confusion = {"good": {"good": 6, "bad": 2}, "bad": {"good": 1, "bad": 3}, OUTSIDE: {"bad": 5}}
    good, bad, odd = classes(confusion, ("good", "bad", "odd"))
    assert (good.expected, good.answered, good.correct) == (8, 7, 6)
    assert (bad.expected, bad.answered, bad.correct) == (4, 10, 3)  # 5 of its answers where another was expected
    assert (good.precision, good.recall, good.f1) == (6 / 7, 0.75, 12 / 15)
    assert (odd.precision, odd.recall, odd.f1) == (None, None, None)
    assert macro_f1([good, bad, odd]) == pytest.approx((12 / 15 + 6 / 14) / 2)
    assert macro_f1([]) is None


def test_the_calibration_error_by_hand() -> None:
    # 10 rows, 90 % sure, 8 correct: 0.1 off. 30 rows, 60 % sure, 21 correct: 0.1 off. 10 without gold do not count.
    bins = [Confident(), Confident(40, 0, 30, 18_000_000, 21), Confident(10, 0, 10, 9_000_000, 8), Confident(10, 0)]
    assert calibration_error(bins) == pytest.approx((10 * 0.1 + 30 * 0.1) / 40)
    assert calibration_error([Confident(4, 0, 4, 4_000_000, 4)]) == 0.0
    assert calibration_error([Confident(10, 5)]) is None


def test_a_run_is_compared_with_the_newest_of_its_job_that_did_a_row(tmp_path: Path) -> None:
    sink, mix = str(tmp_path), (0.5, 0.4, 0.1)

    def ends(run: str, measures: Measures, job: str = "classify") -> Quality:
        return at_the_end(sink, run, job=job, model="m", fingerprint="f", measures=measures)

    assert ends("1", answered(1, 500, mix)).against is None
    ends("2", answered(2, 500, mix), job="other")
    ends("3", Measures())
    (tmp_path / "runs" / "4").mkdir()
    (tmp_path / "runs" / "4" / FILE).write_text('{"version": 1}')
    (tmp_path / "runs" / "5").mkdir()  # killed
    found = ends("6", answered(6, 500, (0.1, 0.8, 0.1)))
    ends("7", answered(7, 500, mix))

    assert found.against == "1"
    assert found.drift == drift(answered(6, 500, (0.1, 0.8, 0.1)), answered(1, 500, mix))
    assert of_run(sink, "6") == found
    assert of_run(sink, "4") is None
    assert earlier(sink, "6", job="other") == of_run(sink, "2")


def test_alerts_see_drift_at_the_end_alone_and_each_figure_is_a_metric(tmp_path: Path) -> None:
    before = answered(1, 2_000, (0.6, 0.35, 0.05))
    at_the_end(str(tmp_path), "1", job="j", model="m", fingerprint="f", measures=before)
    after = answered(2, 2_000, (0.3, 0.6, 0.1))
    found = at_the_end(str(tmp_path), "2", job="j", model="m", fingerprint="f", measures=after)

    seen = alert_figures.at_the_end({}, summary(quality=found), exit_code=0)
    assert seen["significant_psi"] == found.figures()["labels_psi"]
    assert seen["refusal_rate"] is None
    assert found.figures().keys() - {"lengths_psi", "prompts_js", "confidence_js"} <= set(METRICS)
    assert "significant_psi" not in alert_figures.at_the_end({}, summary(), exit_code=0)
    (told,) = [text for label, text in closing.lines(summary(quality=found), None) if label == "drift"]
    assert told == f"PSI {found.figures()['labels_psi']:.2f}, in values of label; against run 1"


def test_the_panel_finds_the_same_rows_again_and_counts_changed_answers(tmp_path: Path) -> None:
    """30 units of 20 rows: all units, 10 rows of each; one row in four of the second run has another label."""
    labels = ["good", "good", "good", "bad"] * 5
    opened(tmp_path)
    first = [unit(tmp_path, "1", 20 * n, labels) for n in range(30)]
    second = [unit(tmp_path, "2", 20 * n, ["good"] * 20) for n in range(30)]
    before, after = (panel(str(tmp_path), some, ["label"]) for some in (first, second))

    assert before == panel(str(tmp_path), reversed(first), ["label"])
    assert before.answers.keys() == after.answers.keys()
    assert len(before.answers) == 300
    bad = sum(1 for place in before.answers if int(place.rpartition(":")[2]) % 4 == 3)
    assert 40 < bad < 110
    assert changed(after, before) == (300, bad)
    assert changed(before, before) == (300, 0)
    other_input = [replace(one, identity="v2") for one in second]
    assert changed(panel(str(tmp_path), other_input, ["label"]), before) == (0, 0)

    grown = [*first, *(unit(tmp_path, "1", 0, labels, shard=f"{n}.jsonl") for n in range(30))]
    larger = panel(str(tmp_path), grown, ["label"])
    assert len(larger.answers) == 10 * UNITS
    assert changed(larger, before)[0] == len(larger.answers.keys() & before.answers.keys()) >= 100
    (tmp_path / "data" / str(first[0].data_file)).unlink()
    assert len(panel(str(tmp_path), first, ["label"]).answers) == 290


def test_a_run_tells_how_many_rows_of_the_panel_have_another_answer(tmp_path: Path) -> None:
    sink = str(tmp_path)
    opened(tmp_path)

    def ends(run: str, label: str) -> Quality:
        receipts = [unit(tmp_path, run, 0, ["good"] * 4 + [label] * 4)]
        found = Measures.of(receipts)
        return at_the_end(
            sink, run, job="j", model="m", fingerprint=run, measures=found, current=receipts, columns=["label"]
        )

    assert ends("1", "good").figures()["panel_changed_share"] is None
    found = ends("2", "bad")
    assert (found.panel_rows, found.panel_changed, found.figures()["panel_changed_share"]) == (8, 4, 0.5)
    assert of_run(sink, "2") == found
