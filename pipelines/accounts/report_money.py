"""The money in a report: where it went, what a million tokens cost, and what providers list for the same tokens."""

from datetime import date, datetime
from decimal import Decimal

from pipelines.accounts.attribution import NS
from pipelines.accounts.closing import money
from pipelines.accounts.cost import PerMillion, old_price
from pipelines.accounts.providers import Offer, offers
from pipelines.accounts.report_data import Run, Spent
from pipelines.accounts.report_page import Cell, Section, Table, percent, shown
from pipelines.config import DevicePrice

PARTS = {
    "startup": ("start-up", "until a replica serves"),
    "prefill": ("prefill", "reading prompts"),
    "decode": ("decode", "writing answers"),
    "idle": ("idle", "waiting for input"),
    "tail": ("tail", "done, while other replicas still worked"),
    "failed": ("failed", "work that was lost or done again"),
    "rejected": ("rejected", "speculation thrown away"),
    "shutdown": ("shutdown", "after the last row"),
}


def cost(run: Run, *, today: date) -> Section:
    """Where the money went, and what a million tokens cost."""
    spent = run.spent
    if spent is None:
        return Section(name="cost", title="Cost")
    price = DevicePrice(usd_per_hour=spent.usd_per_hour, source=spent.price_source, date=spent.price_date)
    facts = [
        (
            "billed",
            f"{money(spent.usd)} for {Decimal(spent.device_ns) / NS:,.1f} device-seconds of {shown(spent.device)}",
        ),
        ("price", f"{money(spent.usd_per_hour)} an hour ({shown(spent.price_source)}, {shown(spent.price_date)})"),
    ]
    bill = run.summary.get("bill") or {}
    by = (("cache", "the prefix cache"), ("dedup", "prompts asked once"), ("carry", "earlier answers"))
    saved = [(name, Decimal(bill[f"saved_by_{key}_usd"])) for key, name in by if bill.get(f"saved_by_{key}_usd")]
    if saved:
        facts.append(("saved", ", ".join(f"{money(usd)} by {name}" for name, usd in saved) + " (estimated)"))
    old = old_price(price, today=today)
    tables = [_waterfall(spent), *_per_million(run, spent)]
    notes = ["The parts add up to the bill; docs/cost.md has the rule of each.", *([shown(old)] if old else [])]
    return Section(name="cost", title="Cost", facts=facts, tables=tables, notes=notes)


def _waterfall(spent: Spent) -> Table:
    digits = max(2, 3 - spent.usd.adjusted()) if spent.usd else 2  # so that the column can be added up
    rows, at = [], Decimal(0)
    for part in spent.parts:
        if not part.device_ns:
            continue
        name, meaning = PARTS.get(part.name, (shown(part.name), ""))
        share = Decimal(part.device_ns) / spent.device_ns if spent.device_ns else Decimal(0)
        ends = at + share
        bar = (float(max(Decimal(0), min(at, ends))), float(min(Decimal(1), max(at, ends))))
        rows.append(
            [
                Cell(name),
                Cell(bar=bar),
                Cell(_dollars(part.usd, digits), part.usd),
                Cell(percent(share), share),
                Cell(f"{Decimal(part.device_ns) / NS:,.1f}", part.device_ns),
                Cell(meaning),
            ]
        )
        at = ends
    seconds = f"{Decimal(spent.device_ns) / NS:,.1f}"
    return Table(
        caption="Where the money went",
        heads=("part", "", "dollars", "share", "device-seconds", "which time"),
        rows=rows,
        numbers=frozenset({2, 3, 4}),
        total=[Cell("total"), Cell(), Cell(_dollars(spent.usd, digits)), Cell("100.0 %"), Cell(seconds), Cell()],
    )


def _dollars(usd: Decimal, digits: int) -> str:
    return f"{'-' if usd < 0 else ''}${abs(usd):,.{digits}f}"


def _per_million(run: Run, spent: Spent) -> list[Table]:
    kinds = (("billed", False, "all of the bill"), ("useful", True, "prefill and decode alone"))
    rows = []
    for name, useful, meaning in kinds:
        each: PerMillion = spent.per_million(run.totals, useful=useful)
        if each.total is not None:
            cells = [Cell("" if usd is None else money(usd), usd) for usd in (each.input, each.output, each.total)]
            rows.append([Cell(name), *cells, Cell(meaning)])
    heads = ("", "input", "output", "total", "of what")
    table = Table(caption="Dollars per million tokens", heads=heads, rows=rows, numbers=frozenset({1, 2, 3}))
    return [table] if rows else []


def elsewhere(run: Run, *, at: datetime) -> Section:
    """The same tokens at providers' list prices."""
    totals = run.totals
    title = "The same tokens at providers"
    if not totals.prompt_tokens + totals.output_tokens or run.rows_asked <= 0:
        return Section(name="elsewhere", title=title)
    ours = None if run.spent is None else run.spent.usd
    found = offers(rows=run.rows_asked, prompt_tokens=totals.prompt_tokens, output_tokens=totals.output_tokens, at=at)
    listed = [offer for offer in found if offer.standard_usd is not None or offer.batch_usd is not None]
    rows = [_offer(offer, ours) for offer in listed]
    if ours is not None:
        rows.insert(
            0,
            [Cell(shown(run.model)), Cell("this run, billed"), Cell(), Cell(money(ours), ours), Cell("1.0", 1), Cell()],
        )
    table = Table(
        caption=f"List prices as of {at.date().isoformat()}, for {totals.prompt_tokens:,} tokens in and "
        f"{totals.output_tokens:,} out",
        heads=("model", "who", "standard", "batch", "times this run", "source of the price"),
        rows=rows,
        numbers=frozenset({2, 3, 4}),
    )
    notes = [
        "Estimates: list prices, our tokenizer's counts (a provider's own differ), no prompt caching at the provider.",
        "Other models than this run's: their answers are not the same. The factor is of the cheaper price.",
    ]
    if run.manifest["engine"]["kind"] == "simulated":
        notes.insert(0, "This run's engine was simulated: its own cost says nothing of a model's.")
    return Section(name="elsewhere", title=title, tables=[table], notes=notes)


def _offer(offer: Offer, ours: Decimal | None) -> list[Cell]:
    prices = [usd for usd in (offer.standard_usd, offer.batch_usd) if usd is not None]
    times = min(prices) / ours if ours else None
    source = "; ".join(
        dict.fromkeys(
            f"{price.source}, {price.date or 'undated'}" for price in (offer.standard, offer.batch) if price is not None
        )
    )
    return [
        Cell(shown(offer.model)),
        Cell(shown(offer.provider)),
        *(Cell("" if usd is None else money(usd), usd) for usd in (offer.standard_usd, offer.batch_usd)),
        Cell("" if times is None else f"{times:,.1f}", times),
        Cell(shown(" – ".join(filter(None, (source, offer.note))))),
    ]
