"""The section of a report about answers: labels, gold, confidence, and how far they are from the run before."""

from collections.abc import Sequence

from pipelines.accounts.agreement import calibration_error, classes, macro_f1, wilson
from pipelines.accounts.judged import Judged
from pipelines.accounts.quality import SIGNIFICANT, Drift, Measures
from pipelines.accounts.quality_files import Quality
from pipelines.accounts.report_data import Run
from pipelines.accounts.report_page import Cell, Section, Table, percent, shown
from pipelines.accounts.report_rows import Answers
from pipelines.accounts.report_sections import label_table, sampled
from pipelines.accounts.texts import Texts
from pipelines.sink.measures import CONFIDENCE_BINS, MILLION, OUTSIDE, Confident

CLASSES_SHOWN = 30
LANGUAGES_SHOWN = 5
PAIRS_SHOWN = 15  # of labels that were taken for one another
COMPARED = {
    "lengths": "lengths of answers",
    "prompts": "lengths of prompts",
    "confidence": "confidence",
    "errors": "error rate",
    "refusals": "refusals",
    "accuracy": "accuracy",
}


def quality(
    run: Run, seen: Answers, measures: Measures, found: Quality | None, judges: Sequence[Judged] = ()
) -> Section:
    """Labels, how many of them are those expected, verdicts, and drift. `found`: what the run left; None: nothing."""
    totals, counts = run.totals, measures.counts
    facts = []
    if totals.gold_rows and totals.gold_correct is not None and totals.accuracy is not None:
        low, high = wilson(totals.gold_correct, totals.gold_rows)
        told = f"{totals.gold_correct:,} of {totals.gold_rows:,} answered rows with a gold label"
        between = f"95 % interval {percent(low)} to {percent(high)}, Wilson"
        facts.append(("accuracy", f"{percent(totals.accuracy)} ({told}; {between})"))
    of_class = classes(counts.confusion)
    if (mean := macro_f1(of_class)) is not None:
        facts.append(("macro F1", percent(mean)))
    if (off := calibration_error(counts.confidence)) is not None:
        facts.append(("calibration", f"confidences are {percent(off)} off on average (expected calibration error)"))
    if counts.refusals is not None and counts.rows:
        told = f"{counts.refusals:,} of {counts.rows:,} answers begin like one"
        facts.append(("refusals", f"{percent(counts.refusals / counts.rows)} ({told})"))
    if found is not None and found.texts is not None:
        facts += _texts(found.texts)
    for one in judges:
        by = f"by {one.model} with job {one.job}"
        facts.append(("judged", "; ".join(filter(None, (f"{one.words()}, {by}", one.of_gold())))))
    tables, notes = [], []
    if found is not None and found.drift is not None:
        facts.append(("against", f"run {shown(found.against)}, with {found.drift.rows_old:,} answered rows"))
        if found.panel_rows and found.panel_changed is not None:
            low, high = wilson(found.panel_changed, found.panel_rows)
            told = f"{found.panel_changed:,} of {found.panel_rows:,} rows have another answer"
            facts.append(("panel", f"{told} (95 % interval {percent(low)} to {percent(high)})"))
        tables.append(_drift(found.drift))
        notes.append("Corrected p after Holm; rows are taken for independent, so many alike make it too small.")
    if counts.labels:
        tables += [label_table(column, {"": values}) for column, values in counts.labels.items()]
    elif seen.labels:  # units of a time before measures
        tables += [label_table(column, {"": values}) for column, values in seen.labels.items()]
        notes += sampled(seen)
    if of_class:
        tables += [_classes(measures), *_confused(measures)]
    if any(one.gold_rows for one in counts.confidence):
        tables.append(_calibration(counts.confidence))
    if 0 < counts.rows < totals.rows_ok:
        notes.append(f"Measured: {counts.rows:,} of {totals.rows_ok:,} answered rows; the rest is of an older version.")
    return Section(name="quality", title="Answers: labels, accuracy, drift", facts=facts, tables=tables, notes=notes)


def _texts(seen: Texts) -> list[tuple[str, str]]:
    """What a sample of answers in free text is like."""
    facts, of = [], f"of {seen.rows:,} answers drawn"
    if seen.languages:
        named = ", ".join(f"{name} {rows:,}" for name, rows in list(seen.languages.items())[:LANGUAGES_SHOWN])
        same = f"; {seen.same_language:,} of {seen.paired:,} in that of their input" if seen.paired else ""
        facts.append(("language", f"{named} ({of}, those long enough to tell{same}; py3langid)"))
    if seen.sentiment is not None:
        facts.append(("sentiment", f"mean polarity {seen.sentiment:+.2f}, -1 to 1 ({of}; textblob, by English words)"))
    if seen.relevance is not None:
        told = f"{percent(seen.relevance)} of an answer's words stand in its input"
        facts.append(("relevance", f"{told} ({of}; ROUGE-1 precision)"))
    return facts


def _drift(apart: Drift) -> Table:
    distances = {"lengths": (apart.lengths_psi, apart.lengths_js), "prompts": (None, apart.prompts_js)}
    distances["confidence"] = (None, apart.confidence_js)
    labels = [name for name in apart.p_values if name.startswith("labels.")]
    if len(labels) <= 1:
        distances[labels[0] if labels else "labels"] = (apart.labels_psi, apart.labels_js)
    else:
        distances["labels"] = (apart.labels_psi, apart.labels_js)
    changes = {
        "errors": apart.error_rate_change,
        "refusals": apart.refusal_rate_change,
        "accuracy": apart.accuracy_change,
    }
    rows = []
    for name in dict.fromkeys([*sorted(labels), *distances, *changes]):
        psi, js = distances.get(name, (None, None))
        change, p = changes.get(name), apart.p_values.get(name)
        if psi is None and js is None and change is None and p is None:
            continue
        said = "" if p is None else "another" if p < SIGNIFICANT else "chance would do"
        what = COMPARED.get(name) or ("labels, the farthest" if name == "labels" else f"values of {name[7:]}")
        rows.append(
            [
                Cell(shown(what, 80)),
                Cell("" if psi is None else f"{psi:.3f}", psi),
                Cell("" if js is None else f"{js:.4f}", js),
                Cell("" if change is None else f"{change * 100:+.2f} points", change),
                Cell("" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}", p),
                Cell(said),
            ]
        )
    heads = ("compared", "PSI", "Jensen-Shannon, bits", "change", "p, corrected", "so it is")
    return Table(caption="Drift", heads=heads, rows=rows, numbers=frozenset({1, 2, 3, 4}))


def _share(correct: int, of: int) -> list[Cell]:
    """A share, and its 95 % interval."""
    if not of:
        return [Cell(), Cell()]
    low, high = wilson(correct, of)
    return [Cell(percent(correct / of), correct / of), Cell(f"{percent(low)} to {percent(high)}", low)]


def _classes(measures: Measures) -> Table:
    found = sorted(classes(measures.counts.confusion), key=lambda one: (-one.expected, one.label))
    rows = [
        [
            Cell(shown(one.label, 80)),
            Cell(f"{one.expected:,}", one.expected),
            Cell(f"{one.answered:,}", one.answered),
            *_share(one.correct, one.answered),
            *_share(one.correct, one.expected),
            Cell("" if one.f1 is None else percent(one.f1), one.f1),
        ]
        for one in found[:CLASSES_SHOWN]
    ]
    heads = ("class", "expected", "answered", "precision", "95 % interval", "recall", "95 % interval ", "F1")
    numbers = frozenset(range(1, len(heads)))
    more = f", the {CLASSES_SHOWN} most expected" if len(found) > CLASSES_SHOWN else ""
    return Table(caption=f"Per class, of the rows with a gold label{more}", heads=heads, rows=rows, numbers=numbers)


def _confused(measures: Measures) -> Sequence[Table]:
    pairs = [
        (rows, gold, label)
        for gold, answered in measures.counts.confusion.items()
        for label, rows in answered.items()
        if gold != label or gold == OUTSIDE
    ]
    if not pairs:
        return []
    pairs.sort(key=lambda one: (-one[0], one[1], one[2]))
    rows = [
        [Cell(shown(gold, 80) or "(another)"), Cell(shown(label, 80) or "(another)"), Cell(f"{count:,}", count)]
        for count, gold, label in pairs[:PAIRS_SHOWN]
    ]
    more = f", the {PAIRS_SHOWN} most frequent of {len(pairs):,}" if len(pairs) > PAIRS_SHOWN else ""
    heads = ("expected", "answered", "rows")
    return [Table(caption=f"Taken for one another{more}", heads=heads, rows=rows, numbers=frozenset({2}))]


def _calibration(bins: Sequence[Confident]) -> Table:
    rows = []
    for place, one in enumerate(bins):
        if one.gold_rows:
            sure = one.gold_millionths / MILLION / one.gold_rows
            between = f"{place / CONFIDENCE_BINS:.2f} to {(place + 1) / CONFIDENCE_BINS:.2f}"
            cells = [Cell(between, place), Cell(f"{one.gold_rows:,}", one.gold_rows), Cell(percent(sure), sure)]
            rows.append([*cells, *_share(one.gold_correct, one.gold_rows)])
    heads = ("confidence", "rows", "mean confidence", "correct", "95 % interval")
    return Table(caption="Confidence against gold", heads=heads, rows=rows, numbers=frozenset(range(5)))
