"""A plan, as one table for people and as one JSON document for programs.

What was not found out is absent from the table and null in the document; what was estimated says so.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import planned_cost
from pipelines.accounts.summary import printable, without_secrets
from pipelines.ahead import Ahead
from pipelines.changes import Reason
from pipelines.draw import Drawn
from pipelines.field_rows import FieldOrder
from pipelines.outlook import Outlook
from pipelines.preflight import Finding
from pipelines.redact import redacted

_BAR = 24  # columns
_BINS = 8
_QUANTILES = (0.5, 0.9, 0.99)
_FRESH = (Reason.NEW, Reason.PARTIAL)
_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red", "not tried": "dim"}
_CHANGED = (Reason.CHANGED, Reason.ASKED_ANEW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do."""

    job: str
    model: str
    source_uri: str
    sink_uri: str
    fingerprint: str
    seed: int
    ahead: Ahead
    drawn: Drawn
    outlook: Outlook
    max_model_len: int  # prompt and output tokens together
    max_tokens: int  # of an answer
    refusals: tuple[str, ...]  # why the run would not start as it is asked for
    preflight: tuple[Finding, ...] = ()
    fields: FieldOrder | None = None  # of the job, as its prompts print them


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose prompts have `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


def histogram(tokens: npt.NDArray[np.int64]) -> list[Bin]:
    """Prompt lengths in a few bins: of equal width, or twice as wide each where lengths differ much."""
    if not len(tokens):
        return []
    low, high = int(tokens.min()), int(tokens.max())
    if high >= 8 * max(1, low):
        first = max(0, low.bit_length() - 1)
        edges = [2**power for power in range(first, high.bit_length() + 1)]
    else:
        width = max(1, -(-(high - low + 1) // _BINS))
        edges = list(range(low, high + width + 1, width))
    counts, _ = np.histogram(tokens, edges)
    ends = list(edges)
    found = [Bin(at, end - 1, int(count)) for at, end, count in zip(ends, ends[1:], counts, strict=False)]
    if found and high >= ends[-1]:  # numpy's last bin is closed
        found[-1] = Bin(found[-1].low, high, found[-1].rows)
    while found and not found[-1].rows:
        found.pop()
    return found


def nothing_to_do(plan: Plan) -> bool:
    """Whether the run would ask nothing and take nothing away."""
    return not plan.ahead.counted and not plan.ahead.removed_rows


# ---------------------------------------------------------------------------------------------------- for people


def show(plan: Plan, console: Console | None = None) -> None:
    """Print the table, to stdout unless told otherwise."""
    out = console or Console(highlight=False)
    title = Text(f"plan {printable(plan.job)} with {printable(plan.model)}: ", style="bold")
    said = "nothing to do" if nothing_to_do(plan) else f"{_about(plan.ahead)}{plan.ahead.rows:,} rows to ask"
    out.print(title.append(said, style="green"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines(plan):
        table.add_row(label, Text(printable(redacted(value))))
    out.print(table)
    for more in planned_cost.tables(plan.outlook):
        out.print()
        out.print(more)
    if plan.preflight:
        out.print()
        out.print(_preflight(plan.preflight))
    for refusal in plan.refusals:
        out.print(Text(f"the run would be refused: {printable(redacted(refusal))}", style="yellow"), soft_wrap=True)


def _preflight(findings: Sequence[Finding]) -> Table:
    table = Table(title=Text("before a start"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("look", style="cyan", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found", overflow="fold")
    for one in findings:
        words = Text(printable(redacted(one.words)))
        table.add_row(one.name, Text(one.verdict, style=_COLOURS[one.verdict]), words)
    return table


def lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    yield "corpus", f"{plan.source_uri}, {plan.ahead.shards:,} shards"
    yield "output", plan.sink_uri
    yield from _to_do(plan.ahead)
    if plan.fields:
        yield "fields", plan.fields.line()
    if plan.drawn.rows:
        yield from _sampled(plan)
    yield from planned_cost.lines(plan.outlook)


def _to_do(ahead: Ahead) -> Iterator[tuple[str, str]]:
    if ahead.counted:
        how = "" if ahead.exact else " (estimated: not every shard was counted)"
        units = f"{'' if ahead.units_exact else 'about '}{ahead.units:,} units"
        yield "to do", f"{_about(ahead)}{ahead.rows:,} rows in {units} of {len(ahead.counted):,} shards{how}"
    for label, reasons in (("new", _FRESH), ("changed", _CHANGED), ("failed", (Reason.RETRIED,))):
        found = [ahead.groups[reason] for reason in reasons if reason in ahead.groups]
        if any(group.rows or group.units for group in found):
            rows, cut = sum(group.rows for group in found), sum(group.units for group in found)
            why = ", ".join(str(reason) for reason in reasons if reason in ahead.groups)
            yield f"  {label}", f"{rows:,} rows, {cut:,} units ({why})"
    if ahead.rows_kept:
        yield "  kept", f"{ahead.rows_kept:,} answered rows beside those that failed"
    if ahead.unchanged_rows:
        dead = sum(ahead.dead_letters.values())
        by_type = ", ".join(f"{kind} {count:,}" for kind, count in ahead.dead_letters.items())
        told = f", {dead:,} of them dead letters ({by_type}): retry_errors=true asks those again" if dead else ""
        yield "unchanged", f"{ahead.unchanged_rows:,} rows cost nothing{told}"
    if ahead.removed_shards:
        yield "removed", f"{ahead.removed_rows:,} rows of {ahead.removed_shards:,} shards that the corpus has no more"


def _sampled(plan: Plan) -> Iterator[tuple[str, str]]:
    drawn = plan.drawn
    if drawn.whole:
        yield "sample", f"all {drawn.rows:,} rows"
    else:
        places = f"{drawn.blocks:,} places of {drawn.shards:,} shards, seed {plan.seed}"
        yield "sample", f"{drawn.rows:,} rows from {places}; of the sample is told:"
    tokens = drawn.prompt_tokens
    if len(tokens):
        between = drawn.interval()
        spread = "" if between is None or drawn.whole else f" (95 % {between[0]:,.1f} to {between[1]:,.1f})"
        marks = ", ".join(f"p{share * 100:.0f} {np.quantile(tokens, share):,.0f}" for share in _QUANTILES)
        yield "prompt", f"mean {tokens.mean():,.1f} tokens{spread}, {marks}, most {tokens.max():,}"
        bins = histogram(tokens)
        tallest = max(one.rows for one in bins)
        for one in bins:
            name = f"{one.low:,}" if one.low == one.high else f"{one.low:,}-{one.high:,}"
            bar = "▇" * max(1 if one.rows else 0, round(_BAR * one.rows / tallest))
            yield "", f"{name:>13} {bar:<{_BAR}} {one.rows:,}"
    for kind, count in drawn.errors.items():
        room = f": over {plan.max_model_len:,} tokens with {plan.max_tokens:,} for the answer"
        yield kind, f"{count:,} rows, {_percent(count / drawn.rows)}{room if kind == 'too_long' else ''}"
    if drawn.duplicates:
        asked = len(tokens)
        told = f"{drawn.duplicates:,} rows, {_percent(drawn.duplicates / asked)}, {drawn.duplicate_tokens:,} tokens"
        yield "duplicates", told + ("" if drawn.whole else "; the corpus has no fewer")
    if drawn.carried:
        yield "answered", f"{drawn.carried:,} rows have their answer in the output, by row key"
    yield from _reuse(plan)


def _reuse(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a prefix cache could save, and what it would have to hold for that."""
    drawn, least = plan.drawn, plan.outlook.limits
    shares = [f"{_percent(share)} in blocks of {size}" for size, share in drawn.reuse.items() if share]
    if not shares:
        return
    front = f"; every prompt begins with the same {drawn.static_tokens:,} tokens" if drawn.static_tokens else ""
    yield "reuse", f"{', '.join(shares)} tokens of different prompts are a prefix shared with another{front}"
    kept = max(drawn.shared_tokens.values())
    if least is not None:
        fits = kept <= least.kv_capacity_tokens
        holds = f"the KV cache holds {least.kv_capacity_tokens:,.0f}"
        order = "" if fits else ", so order decides how much of it is reached"
        yield "", f"these prefixes are {kept:,} tokens{'' if drawn.whole else ' or more'}, {holds}{order}"
        yield "", f"ordering=corpus: {corpus_order(drawn, least.kv_capacity_tokens)[1]}"


def corpus_order(drawn: Drawn, kv_tokens: float | None) -> tuple[bool | None, str]:
    """Whether the corpus needs ordering=corpus, and what it would gain, in words. None: the sample does not tell.

    `kv_tokens`: what an engine's KV cache holds; None: not known.
    """
    if kv_tokens is None:
        return None, "not known, for nothing tells what the KV cache holds"
    if max(drawn.shared_tokens.values()) <= kv_tokens:
        if drawn.whole:
            return False, "no gain, the KV cache keeps all that is shared"
        return None, "no gain if the corpus shares no more prefixes than the sample, which the KV cache keeps"
    every = drawn.static_tokens * len(drawn.prompt_tokens) / float(drawn.prompt_tokens.sum())  # found in any order
    share = max(0.0, max(one or 0.0 for one in drawn.reuse.values()) - every)
    told = "of the prompt tokens, less what ordering=window finds among the rows in flight (estimated)"
    return True, f"would spare up to {_percent(share)} {told}"


def _about(ahead: Ahead) -> str:
    return "" if ahead.exact else "about "


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


# ------------------------------------------------------------------------------------------------- for programs


def document(plan: Plan) -> str:
    """The same on one line of JSON."""
    return json.dumps(without_secrets(to_dict(plan)))


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain values."""
    return {
        "plan": plan.job,
        "model": plan.model,
        "source_uri": plan.source_uri,
        "sink_uri": plan.sink_uri,
        "fingerprint": plan.fingerprint,
        "nothing_to_do": nothing_to_do(plan),
        "refusals": list(plan.refusals),
        "fields": _fields_dict(plan.fields) if plan.fields else None,
        "todo": _todo_dict(plan.ahead),
        "sample": _sample_dict(plan),
        **planned_cost.to_dict(plan.outlook),
        "preflight": [asdict(finding) for finding in plan.preflight],
    }


def _fields_dict(order: FieldOrder) -> dict[str, Any]:
    told = {name: getattr(order, name) for name in ("fields", "words", "shared", "shared_given")}
    return {**told, "rules": order.tried.count if order.tried else None}


def _todo_dict(ahead: Ahead) -> dict[str, Any]:
    def group(reasons: Sequence[Reason]) -> dict[str, int]:
        found = [ahead.groups[reason] for reason in reasons if reason in ahead.groups]
        return {name: sum(getattr(one, name) for one in found) for name in ("shards", "rows", "units")}

    return {
        "shards": ahead.shards,
        "shards_with_work": len(ahead.counted),
        "rows": ahead.rows,
        "rows_exact": ahead.exact,
        "units": ahead.units,
        "units_exact": ahead.units_exact,
        "new": group(_FRESH),
        "changed": group(_CHANGED),
        "failed": group((Reason.RETRIED,)),
        "rows_kept": ahead.rows_kept,
        "unchanged": {"shards": ahead.unchanged_shards, "rows": ahead.unchanged_rows},
        "removed": {"shards": ahead.removed_shards, "rows": ahead.removed_rows},
        "dead_letters": dict(ahead.dead_letters),
    }


def _sample_dict(plan: Plan) -> dict[str, Any]:
    drawn, tokens = plan.drawn, plan.drawn.prompt_tokens
    sent = bool(len(tokens))
    limits = plan.outlook.limits
    return {
        "rows": drawn.rows,
        "places": drawn.blocks,
        "shards": drawn.shards,
        "whole": drawn.whole,
        "seed": plan.seed,
        "rows_sent": len(tokens),
        "errors": dict(drawn.errors),
        "duplicates": drawn.duplicates,
        "duplicate_tokens": drawn.duplicate_tokens,
        "carried": drawn.carried,
        "row_bytes": drawn.row_bytes,
        "prompt_tokens": {
            "sum": int(tokens.sum()),
            "mean": float(tokens.mean()) if sent else None,
            "mean_95": list(drawn.interval() or ()) or None,
            "p50": float(np.quantile(tokens, 0.5)) if sent else None,
            "p90": float(np.quantile(tokens, 0.9)) if sent else None,
            "p99": float(np.quantile(tokens, 0.99)) if sent else None,
            "max": int(tokens.max()) if sent else None,
            "histogram": [{"low": one.low, "high": one.high, "rows": one.rows} for one in histogram(tokens)],
        },
        "prefix_reuse": {f"blocks_of_{size}": share for size, share in drawn.reuse.items()},
        "prefix_shared_tokens": {f"blocks_of_{size}": tokens for size, tokens in drawn.shared_tokens.items()},
        "static_prefix_tokens": drawn.static_tokens,
        "needs_corpus_order": corpus_order(drawn, limits.kv_capacity_tokens if limits else None)[0],
    }
