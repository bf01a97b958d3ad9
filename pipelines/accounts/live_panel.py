"""A snapshot of a run for people: a panel on a terminal, a plain line where it is piped.

Names, paths and error types may come from anywhere: they are shown as text, never as markup, and with everything that
a terminal would obey written as an escape.
"""

import math
import time
from collections.abc import Iterator, Sequence

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, OverflowMethod, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.accounts.closing import money
from pipelines.accounts.snapshot import EngineNow, Snapshot
from pipelines.accounts.summary import printable
from pipelines.redact import redacted

_TICKS = "▁▂▃▄▅▆▇█"
_SPARK = 24  # columns
_ERRORS = 6  # types are named
_LEAST_ENGINES, _MOST_ENGINES = 2, 16  # are shown
_FIXED_LINES = 19  # of the panel, besides its engines
_OVERDUE_LINES = 3  # where there is such a row
_WIDE = 72  # columns; below, the panel leaves out what there is no room for
_PHASE = 10  # characters of an engine's state,
_ENGINE = 24  # and of its name
_NAME = 60  # characters of a name; what is longer is cut
_STATES = {"running": "cyan", "ended": "green", "failed": "red"}


def words(now: Snapshot) -> list[str]:
    """What there is to say on one line, piece by piece; what is not known is left out."""
    doing = [safe(now.doing)] if now.doing else []
    if now.steady_s is None:
        return [*doing, clock(now.elapsed_s), *_paid(now)]
    total = "" if now.rows_total is None else f"/{_about(now)}{now.rows_total:,}"
    said = [f"{now.units:,} units", f"{now.rows_in:,}{total} rows"]
    if now.rows_per_s is not None:
        said.append(f"{now.rows_per_s:,.1f} rows/s")
    if now.tokens_per_s is not None:
        said.append(f"{now.tokens_per_s:,.0f} tokens/s")
    if now.eta_s is not None:
        said.append(f"ETA {_about(now)}{clock(now.eta_s)}")
    said.append(f"{now.rows_error:,} errors")
    if now.rows_in_flight is not None:
        said.append(f"{now.rows_in_flight:,} in flight")
    return [*said, *_paid(now), *doing]


def panel(now: Snapshot, *, sign: str | None = None) -> RenderableType:
    """The run, as wide and high as there is room for. `sign`: of a run elsewhere, how old what is shown is."""
    return _Fitted(now, sign)


class _Fitted:
    def __init__(self, now: Snapshot, sign: str | None) -> None:
        self._now, self._sign = now, sign

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(options.max_width, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now, width = self._now, options.max_width - 4
        unicode = options.encoding.startswith("utf")
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(style="cyan", no_wrap=True)
        rows.add_column(overflow="fold", ratio=1)
        for label, text in _rows(now, width - 12, unicode=unicode):
            rows.add_row(label, Text(text) if isinstance(text, str) else text)  # a str would be read as markup
        parts: list[RenderableType] = [rows]
        if now.engines:
            room = min(
                _MOST_ENGINES,
                max(_LEAST_ENGINES, console.size.height - _FIXED_LINES - _OVERDUE_LINES * bool(now.overdue)),
            )
            parts.append(_engines(now, room, wide=width >= _WIDE, unicode=unicode))
        title = Text(safe(f"{now.job} with {now.model}"), style="bold", overflow=_cut(unicode), no_wrap=True)
        subtitle = Text(safe(f"run {now.run}" + (f", {self._sign}" if self._sign else "")), style="dim")
        yield Panel(
            Group(*parts),
            title=title if now.job else None,
            title_align="left",
            subtitle=subtitle if now.run else None,
            subtitle_align="right",
            box=ROUNDED,
            border_style=_STATES[now.state],
            padding=(0, 1),
        )


def _rows(now: Snapshot, width: int, *, unicode: bool) -> Iterator[tuple[str, RenderableType]]:
    yield "", _progress(now, width, unicode=unicode)
    if now.steady_s is None and not now.rows_done:
        if now.usd:
            yield "cost", ", ".join(_paid(now)) + _an_hour(now)
        return
    at_work = now.state == "running"
    of = f" of {_about(now)}{now.rows_total:,}" if at_work and now.rows_total is not None else ""
    open_rows = now.rows_done - now.rows_in
    more = [f"{open_rows:,} answered and not committed"] if open_rows > 0 else []
    more += [f"{now.rows_in_flight:,} in engines"] if now.rows_in_flight is not None else []
    yield "rows", _line(f"{now.rows_in:,}{of}", *more)
    cached = f" ({now.cached_tokens / now.prompt_tokens:.0%} cached)" if now.prompt_tokens else ""
    of = f" of ~{count(now.tokens_total)}" if at_work and now.tokens_total is not None else ""
    yield (
        "tokens",
        _line(f"{count(now.tokens)}{of}", f"{count(now.prompt_tokens)} in{cached}", f"{count(now.output_tokens)} out"),
    )
    if now.usd is not None:
        of = "" if now.usd_total is None else f" of ~{money(now.usd_total)}"
        yield "cost", f"{money(now.usd)}{of}{_an_hour(now)}"
    if burn := _burn(now):
        yield "budget", burn
    for label, rate, history, digits in (
        ("rows/s", now.rows_per_s, now.rows_history, 1),
        ("tokens/s", now.tokens_per_s, now.tokens_history, 0),
    ):
        if rate is not None:
            spark = Text(f"{rate:<12,.{digits}f}")
            yield label, spark.append(sparkline(history) if unicode else "", style="green")
    errors = f"{now.rows_error:,}"
    if now.errors_by_type:
        errors += f": {_errors(now)}"
    yield "errors", Text(errors, style="yellow" if now.rows_error else "")
    if now.held_back and at_work:
        yield "held back", safe(now.held_back, 300)
    if now.overdue and at_work:
        yield "overdue", Text(safe(now.overdue, 300), style="yellow")


def _progress(now: Snapshot, width: int, *, unicode: bool) -> RenderableType:
    """The bar, and how long it will take; before engines answer, what is done."""
    code = "" if now.exit_code is None else f" (exit {now.exit_code})"
    said = safe(now.doing) if now.state == "running" else f"{now.state}{code}"
    if now.eta_s is not None:
        said = ", ".join([*([said] if said else []), f"{_about(now)}{clock(now.eta_s)} left"])
    text = Text(no_wrap=False, overflow="fold")
    if now.share_done is not None and now.state == "running":
        bar = max(8, min(40, width - 40))
        full = int(bar * now.share_done)
        text.append(("━" if unicode else "#") * full, style="green")
        text.append(("─" if unicode else "-") * (bar - full), style="dim")
        text.append(f" {now.share_done:.0%}  ", style="bold")
    text.append(
        f"{said}{', ' if said else ''}{clock(now.elapsed_s)} {'so far' if now.state == 'running' else 'in all'}"
    )
    return text


def _burn(now: Snapshot) -> str:
    said = []
    if now.budget_usd is not None and now.budget_spent_usd is not None:
        said.append(f"{now.budget_share or 0:.1%} of {money(now.budget_usd)} spent")
        if now.budget_lasts_s is not None:
            enough = now.eta_s is None or now.eta_s <= now.budget_lasts_s
            said.append(f"the rest lasts {clock(now.budget_lasts_s)}{'' if enough else ', not to the end'}")
    if now.finish_at is not None:
        left_s = now.finish_at - now.at
        said.append(f"deadline in {clock(left_s)}" if left_s > 0 else "the deadline has passed")
    return "; ".join(said)


def _engines(now: Snapshot, room: int, *, wide: bool, unicode: bool) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("engine", overflow=_cut(unicode), no_wrap=True, min_width=8)
    table.add_column("state", overflow=_cut(unicode), no_wrap=True, width=_PHASE)
    columns = ("running", "waiting", "KV", "cached", "restarts", "rows") if wide else ("running",)
    for name in columns:
        table.add_column(name, justify="right", overflow=_cut(unicode), no_wrap=True, min_width=len(name))
    shown = now.engines[: room if now.engines_total <= room else room - 1]
    for engine in shown:
        style = None if engine.phase in ("serving", "draining") else "yellow"
        table.add_row(*_cells(engine)[: 2 + len(columns)], style=style)
    rest = now.engines[len(shown) :]
    if rest or now.engines_total > len(now.engines):
        table.add_row(*_cells(_together(rest, now.engines_total - len(shown)))[: 2 + len(columns)], style="dim")
    return table


def _cells(engine: EngineNow) -> list[Text]:
    cells = (
        _ends_of(safe(engine.name)),
        safe(engine.phase, _PHASE),
        f"{engine.running:,}",
        f"{engine.waiting:,}",
        _percent(engine.kv_usage),
        _percent(engine.cache_hit_share),
        f"{engine.restarts:,}",
        f"{engine.rows_ended:,}",
    )
    return [Text(cell) for cell in cells]


def _together(engines: Sequence[EngineNow], number: int) -> EngineNow:
    """Many in one line: sums, and of shares the mean."""

    def mean(shares: list[float]) -> float | None:
        return sum(shares) / len(shares) if shares else None

    phases = {engine.phase for engine in engines}
    return EngineNow(
        name=f"and {number:,} more",
        phase=phases.pop() if len(phases) == 1 else "",
        running=sum(engine.running for engine in engines),
        waiting=sum(engine.waiting for engine in engines),
        kv_usage=mean([engine.kv_usage for engine in engines if engine.kv_usage is not None]),
        cache_hit_share=mean([one.cache_hit_share for one in engines if one.cache_hit_share is not None]),
        restarts=sum(engine.restarts for engine in engines),
        rows_ended=sum(engine.rows_ended for engine in engines),
    )


def sparkline(history: Sequence[float]) -> str:
    """The newest steps as bars between nothing and the highest of them."""
    newest = history[-_SPARK:]
    highest = max(newest, default=0.0)
    if highest <= 0:
        return _TICKS[0] * len(newest)
    return "".join(_TICKS[min(len(_TICKS) - 1, int(value / highest * len(_TICKS)))] for value in newest)


def clock(seconds: float) -> str:
    """H:MM:SS, or days and hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours = minutes // 60
    return f"{hours // 24} d {hours % 24} h" if hours >= 100 else f"{hours}:{minutes % 60:02}:{rest:02}"


def at_clock(epoch_s: float) -> str:
    """HH:MM:SS of this machine's day."""
    return time.strftime("%H:%M:%S", time.localtime(epoch_s))


def count(number: int) -> str:
    """In full, or in millions and billions where it is long."""
    for scale, name in ((10**9, "G"), (10**6, "M")):
        if number >= 10 * scale:
            return f"{number / scale:,.1f} {name}"
    return f"{number:,}"


def safe(text: str, most: int = 3 * _NAME) -> str:
    """Text from outside, on one line: no secret, nothing that a terminal obeys, not longer than this."""
    shown = printable(redacted(text))
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _errors(now: Snapshot) -> str:
    most = sorted(now.errors_by_type.items(), key=lambda each: (-each[1], each[0]))
    named = [f"{safe(kind, _NAME)} {number:,}" for kind, number in most[:_ERRORS]]
    rest = sum(number for _, number in most[_ERRORS:])
    return ", ".join([*named, *([f"{len(most) - _ERRORS} other types {rest:,}"] if rest else [])])


def _line(*said: str) -> str:
    return "; ".join(said)


def _paid(now: Snapshot) -> list[str]:
    return [] if now.usd is None else [money(now.usd)]


def _an_hour(now: Snapshot) -> str:
    return f"; {money(now.usd_per_s * 3600)} an hour" if now.usd_per_s else ""


def _about(now: Snapshot) -> str:
    return "~" if now.rows_total_estimated else ""


def _cut(unicode: bool) -> OverflowMethod:
    return "ellipsis" if unicode else "crop"


def _ends_of(name: str) -> str:
    """Both ends of a host and process: machines are told apart by how they end."""
    return name if len(name) <= _ENGINE else f"{name[: _ENGINE // 2 - 2]}..{name[-_ENGINE // 2 :]}"


def _percent(share: float | None) -> str:
    return "" if share is None or not math.isfinite(share) else f"{share:.0%}"
