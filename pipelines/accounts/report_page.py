"""The page of a report: sections of facts, tables and plots, as one HTML file that asks for nothing else.

What comes from outside (a corpus, a config, a name) goes through `shown`: no secrets, no controls, cut. The template
escapes it. The page allows no request at all, and no script but the one that sorts its tables, known by its hash.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipelines.accounts.report_plots import Plot
from pipelines.accounts.summary import printable
from pipelines.redact import redacted

CUT = 200  # characters
Level = Literal["good", "warn", "bad"]

# A click on a head sorts by its column; the numbers are in data-v, so that "$1.20" stands behind "$0.30".
SORT = """
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const sort = () => {
    const table = head.closest("table"), body = table.tBodies[0], place = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => { const cell = row.cells[place]; return cell.dataset.v ?? cell.textContent; };
    const numbers = (a, b) => a === "" || b === "" ? (a === "") - (b === "") : a - b;
    const words = (a, b) => a.localeCompare(b), by = head.className === "number" ? numbers : words;
    const order = (a, b) => by(value(a), value(b));
    body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(a, b)));
  };
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", sort);
  head.append(button);
}
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """A field of a table. `value` is what it is sorted by, where that is not its text; `bar` its share, 0..1."""

    text: str = ""
    value: float | Decimal | None = None
    bar: tuple[float, float] | None = None  # from, to: shares of the field's width, each 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`numbers` are the places of columns of numbers; `total` stands below and is not sorted."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()
    total: Sequence[Cell] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """To a file beside the report, or to a server that the run was told of."""

    text: str
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page; what is empty does not show."""

    name: str  # of its anchor
    title: str
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
    links: Sequence[Link] = ()
    folded: tuple[str, str] | None = None  # title and text that is opened by a click

    @property
    def empty(self) -> bool:
        return not (self.facts or self.tables or self.plots or self.notes or self.links or self.folded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report. `level`: whether its verdict is good."""

    title: str
    level: Level
    word: str  # the verdict in a word
    verdict: str  # and in a sentence
    sections: Sequence[Section] = field(default_factory=list)
    made: str  # when and by which command


def shown(text: object, cut: int = CUT) -> str:
    """`text` as it may stand in a page: without secrets, on one line, of at most `cut` characters."""
    # Cut before and after: to look for secrets in a megabyte takes long, and an escape makes a text longer.
    plain = str(text)
    start = printable(redacted(plain[: 4 * cut]))
    return start if len(start) <= cut and len(plain) <= 4 * cut else start[:cut] + "…"


def block(text: str) -> str:
    """Text of several lines, as `shown` does it line by line, uncut."""
    return "\n".join(printable(line) for line in redacted(text).split("\n"))


def percent(share: Decimal | float) -> str:
    """A share of 0..1 in words."""
    return f"{share * 100:.1f} %"


def lasted(seconds: float) -> str:
    """So many seconds as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def rendered(page: Page) -> str:
    """The page as HTML."""
    digest = base64.b64encode(hashlib.sha256(SORT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = [section for section in page.sections if not section.empty]
    return _template().render(page=page, sections=sections, policy=policy, sort=Markup(SORT))  # noqa: S704


@cache
def _template() -> Template:
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")
