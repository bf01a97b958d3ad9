"""The sections of a report, one function each, in the order in which they are read. What was not measured is absent."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median

import numpy as np
import yaml

from pipelines.accounts import report_plots as plots
from pipelines.accounts.manifest import inputs_sha256
from pipelines.accounts.report_data import Run
from pipelines.accounts.report_page import Cell, Link, Section, Table, block, lasted, percent, shown
from pipelines.accounts.report_rows import CUT, TYPES_SHOWN, Answers, Example

LABELS_SHOWN = 30
FEW_ROWS = 50  # of which a histogram would say little
FEW_UNITS = 8  # the same of speed over time
_GIB = 2**30


def did(run: Run) -> Section:
    """Rows, where they came from, and how long it took."""
    totals, summary = run.totals, run.summary
    facts = [
        ("rows", f"{totals.rows_in:,} in = {totals.rows_ok:,} ok + {totals.rows_error:,} errors"),
        ("units", f"{totals.units:,}"),
        ("asked of the model", f"{run.rows_asked:,} rows, those found unanswerable included"),
    ]
    if totals.rows_carried:
        facts.append(("carried", f"{totals.rows_carried:,} rows, from earlier answers"))
    if totals.rows_shared:
        facts.append(("shared", f"{totals.rows_shared:,} rows, with the same prompt as another"))
    if totals.shards_unreadable:
        facts.append(("unreadable", f"{totals.shards_unreadable:,} shards, from some row on"))
    if summary.get("shards_removed"):
        facts.append(("removed", f"{summary['shards_removed']:,} shards that the corpus has no more"))
    whole = summary.get("output") or {}
    if whole and whole["rows_in"] != totals.rows_in:
        told = f"{whole['rows_in']:,} in = {whole['rows_ok']:,} ok + {whole['rows_error']:,} errors, with earlier runs"
        facts.append(("the output has", told))
    facts.append(("tokens", f"{totals.prompt_tokens:,} in, {totals.output_tokens:,} out"))
    facts += [("started", shown(run.manifest["started_at"]))]
    if run.manifest["finished_at"]:
        took = seconds_of(run)
        facts.append(("finished", shown(run.manifest["finished_at"]) + (f", after {lasted(took)}" if took else "")))
    times = ((summary.get("startup_s"), "start-up"), (summary.get("steady_s"), "from there to the last row"))
    if told := ", ".join(f"{lasted(value)} {name}" for value, name in times if value is not None):
        facts.append(("of which", told))
    return Section(name="did", title="What it did", facts=facts)


def speed(run: Run) -> Section:
    """Rows and tokens a second as units were finished, and how long a unit took."""
    facts = []
    for key, unit in (("rows_per_s", "rows/s"), ("tokens_per_s", "tokens/s")):
        if (value := run.summary.get(key)) is not None:
            facts.append((unit, f"{value:,.1f} once started"))
    receipts = run.receipts
    took = sorted(one.finished_at - one.started_at for one in receipts)
    if took:
        p95 = took[min(len(took) - 1, int(len(took) * 0.95))]
        told = f"median {lasted(median(took))}, 95th percentile {lasted(p95)}, longest {lasted(took[-1])}"
        facts.append(("a unit", f"{told}, from read to written"))
    drawn: list[plots.Plot] = []
    begin = min((one.started_at for one in receipts), default=0.0)
    end = max((one.finished_at for one in receipts), default=0.0)
    if len(receipts) >= FEW_UNITS and end - begin >= 1:
        width = float(max(1, -(-(end - begin) // plots.BARS)))
        places = [int((one.finished_at - begin) // width) for one in receipts]
        starts = [place * width for place in range(max(places) + 1)]
        counts = (
            ("rows", [one.rows_in for one in receipts]),
            ("tokens", [one.prompt_tokens + one.output_tokens for one in receipts]),
        )
        for name, values in counts:
            per_s = (np.bincount(places, weights=values, minlength=len(starts)) / width).tolist()
            title = f"{name.capitalize()} per second"
            drawn.append(plots.over_time(f"speed-{name}", title, starts_s=starts, per_s=per_s, width_s=width))
    notes = ["A unit counts where it was finished, with all of its rows."] if drawn else []
    return Section(name="speed", title="Throughput", facts=facts, plots=drawn, notes=[*notes, *_gpus(run)])


def _gpus(run: Run) -> list[str]:
    told = []
    for gpu in run.summary.get("gpus") or ():
        if gpu.get("utilization") is not None:
            memory = "" if gpu.get("memory_bytes") is None else f", {gpu['memory_bytes'] / _GIB:.1f} GiB used"
            told.append(
                shown(f"{gpu['name']} ({gpu['node']} {gpu['index']}): {percent(gpu['utilization'])} busy{memory}")
            )
    return told


def held_back(run: Run) -> Section:
    """What held the run back, beside what its hardware allows."""
    found = run.summary.get("limits") or {}
    facts = []
    if found.get("bottleneck"):
        told = f"{found['bottleneck']} took {percent(found['bottleneck_share'])} of the devices' time"
        facts.append(("held back by", shown(told)))
        gain = found.get("gain_at_most_estimated")
        gained = "" if gain is None else f"; at most {gain:.1f} times as fast (an estimate)"
        facts.append(("what to change", shown(f"{found['change']}{gained}")))
    if found.get("achieved_sequential") is not None:
        told = f"{percent(found['achieved_sequential'])} of what {found['device']} allows one after the other"
        facts.append(("speed", shown(f"{told}, {percent(found['achieved_ideal'])} of the ideal")))
    for key, name in (("mfu", "MFU"), ("mbu_at_least", "MBU, at least")):
        if found.get(key) is not None:
            facts.append((name, percent(found[key])))
    return Section(name="limits", title="Bottleneck and limits", facts=facts)


def lengths(run: Run, seen: Answers) -> Section:
    """How long prompts and answers were, and how many prompt tokens the cache had."""
    totals = run.totals
    facts = []
    if totals.cache_hit_share is not None:
        told = f"{totals.cached_tokens:,} of {totals.prompt_tokens:,} prompt tokens were cached"
        facts.append(("prefix reuse", f"{percent(totals.cache_hit_share)}: {told}"))
    if reuse := run.summary.get("reuse"):
        told = "to a cache that forgets nothing, shared by all engines (estimated)"
        facts.append(("reuse available", f"{percent(reuse['available'])} of the prompt tokens {told}"))
        told = "stood right behind a prompt that begins alike"
        facts.append(("captured by order", f"{percent(reuse['captured'])} {told}"))
    drawn = []
    for name, values in (("prompt", seen.prompt_tokens), ("output", seen.output_tokens)):
        if not len(values):
            continue
        low, mid, high = np.percentile(values, [5, 50, 95])
        told = f"median {mid:,.0f}, 5 % to 95 % from {low:,.0f} to {high:,.0f}, most {values.max():,}"
        facts.append((f"{name} tokens of a row", told))
        if len(values) >= FEW_ROWS and values.max() > values.min():
            title = f"{name.capitalize()} tokens per answered row"
            drawn.append(plots.histogram(f"{name}-tokens", title, values, unit=f"{name} tokens"))
    return Section(name="lengths", title="Lengths and prefix reuse", facts=facts, plots=drawn, notes=sampled(seen))


def sampled(seen: Answers) -> list[str]:
    """That not all files were read, if so."""
    if not seen.sampled:
        return []
    return [f"From a sample: {seen.rows:,} rows in {seen.files:,} of {seen.of_files:,} data files, at even distances."]


def label_table(column: str, counted: Mapping[str, Mapping[str, int]]) -> Table:
    """How often each value of a column stands, by whose rows; the most frequent first, the rest as one."""
    counts = list(counted.values())
    order = sorted(
        {value for each in counts for value in each}, key=lambda one: (-sum(c.get(one, 0) for c in counts), one)
    )
    wholes = [max(1, sum(each.values())) for each in counts]
    named = [(shown(value, 80) or "(empty)", [each.get(value, 0) for each in counts]) for value in order[:LABELS_SHOWN]]
    if rest := order[LABELS_SHOWN:]:
        named.append((f"{len(rest):,} others", [sum(each.get(value, 0) for value in rest) for each in counts]))
    rows = []
    for name, of_runs in named:
        cells = [Cell(name)]
        for count, whole in zip(of_runs, wholes, strict=True):
            cells += [
                Cell(bar=(0.0, count / whole)),
                Cell(f"{count:,}", count),
                Cell(percent(count / whole), count / whole),
            ]
        rows.append(cells)
    heads = [column]
    for whose in counted:
        heads += ["", f"rows {whose}".strip(), "share"]
    numbers = frozenset(place for place in range(1, len(heads)) if place % 3 != 1)
    return Table(
        caption=f"Values of {shown(column, 80)}", heads=[shown(head, 80) for head in heads], rows=rows, numbers=numbers
    )


def errors(run: Run, letters: Mapping[str, Sequence[Example]]) -> Section:
    """Dead letters by type, with some of them."""
    totals = run.totals
    by_type = sorted(((n, kind) for kind, n in totals.errors_by_type.items() if n), key=lambda one: (-one[0], one[1]))
    if not by_type:
        return Section(name="errors", title="Errors")
    counted = [
        [
            Cell(shown(kind, 80)),
            Cell(bar=(0.0, count / totals.rows_error)),
            Cell(f"{count:,}", count),
            Cell(percent(count / totals.rows_in), count / totals.rows_in),
        ]
        for count, kind in by_type[:TYPES_SHOWN]
    ]
    heads = ("type", "", "rows", "of all rows")
    tables = [Table(caption="Dead letters by type", heads=heads, rows=counted, numbers=frozenset({2, 3}))]
    rows = [
        [
            Cell(shown(kind, 80)),
            Cell(shown(one.shard)),
            Cell(f"{one.row:,}", one.row),
            Cell(shown(one.error)),
            _text(one),
        ]
        for _, kind in by_type[:TYPES_SHOWN]
        for one in letters.get(kind, ())
    ]
    if rows:
        heads_of = ("type", "shard", "row", "error", "the row's text")
        caption = f"Examples, cut to {CUT} characters"
        tables.append(Table(caption=caption, heads=heads_of, rows=rows, numbers=frozenset({2})))
    more = len(by_type) - TYPES_SHOWN
    notes = [f"{more:,} more types are left out."] if more > 0 else []
    return Section(name="errors", title="Errors", tables=tables, notes=notes)


def _text(example: Example) -> Cell:
    return Cell("" if example.text is None else shown(example.text))


def lineage(run: Run) -> Section:
    """What ran, on what: enough to do it again."""
    manifest = run.manifest
    model, engine = manifest["model"], manifest["engine"]
    inputs = inputs_sha256((each["shard"], each["identity"]) for each in manifest["inputs"])
    files = len(model["files"])
    facts = [
        ("run", run.run_id),
        ("fingerprint", manifest["fingerprint"]),
        ("model", f"{model['name']} from {model['source']}, {model['identity']}"),
        ("its files", f"{files:,}, known by {model['weights_known_by']}"),
        (
            "engine",
            f"{engine['kind']} on {engine['device']}, {engine['dtype']}, {engine['quantization'] or 'unquantized'}",
        ),
        ("inputs", f"{len(manifest['inputs']):,} shards; sha256 over their names and identities {inputs}"),
        ("machine", f"{manifest['host'].get('cpu_model')}, {manifest['host']['cores']} cores"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items()))),
        ("code", manifest["code_sha256"]),
        ("seed", str(manifest["seed"])),
    ]
    parts = [[Cell(shown(name)), Cell(shown(value))] for name, value in sorted(manifest["fingerprint_parts"].items())]
    table = Table(caption="What the fingerprint is made of", heads=("part", "value"), rows=parts)
    config = block(yaml.safe_dump(manifest["config"], sort_keys=True, allow_unicode=True, width=100))
    return Section(
        name="lineage",
        title="Lineage",
        facts=[(name, shown(text, 1000)) for name, text in facts],
        tables=[table],
        folded=("The config of the run", config),
    )


def links(run: Run) -> Section:
    """Where the rest is."""
    config = run.manifest["config"]
    found = [Link(text="manifest.json", href="manifest.json"), Link(text="config.yaml", href="config.yaml")]
    facts = [("output", shown(config["sink"]["uri"]))]
    tracking = (config.get("tracking") or {}).get("uri")
    if tracking:
        facts.append(("MLflow", shown(f"{tracking}; find the run by tags.`pipelines.run_id` = '{run.run_id}'")))
        if tracking.startswith(("http://", "https://")) and shown(tracking) == tracking:
            found.append(Link(text="MLflow", href=tracking))
    return Section(name="links", title="Links", facts=facts, links=found)


def seconds_of(run: Run) -> float | None:
    """From the command to its end; None: it has not ended."""
    if not run.manifest["finished_at"]:
        return None
    started, finished = (datetime.fromisoformat(run.manifest[name]) for name in ("started_at", "finished_at"))
    return (finished - started).total_seconds()
