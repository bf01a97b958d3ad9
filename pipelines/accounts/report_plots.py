"""Plots of a report: matplotlib's, as SVG that stands inside a page and takes its colours from the page.

Only numbers and words of ours are drawn: a text from a corpus could hold what matplotlib takes for a formula.
Colours are written as placeholders, which the page's style sheet fills, in its light and in its dark theme.
"""

import html
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID, ONE = "#010101", "#020202", "#030303"
_FILLED: Mapping[str, str] = MappingProxyType({INK: "ink", GRID: "grid", ONE: "one"})
_WIDE, _HIGH = 5.4, 2.5  # inches: at the width of a phone its letters are still 9 pixels high
BARS = 40  # of a histogram, or of time, at most


@dataclass(frozen=True, slots=True)
class Plot:
    """An SVG and what it shows, for who does not see it."""

    title: str
    svg: Markup


def over_time(name: str, title: str, *, starts_s: Sequence[float], per_s: Sequence[float], width_s: float) -> Plot:
    """A rate in intervals of equal width, from the reading of the first unit on."""

    def draw(axes: "Axes") -> None:
        scale, unit = _time_unit(starts_s[-1] + width_s)
        axes.bar(np.array(starts_s) / scale, per_s, width=width_s / scale * 0.96, align="edge", color=ONE)
        axes.set_xlabel(f"{unit} since the first unit was read")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6)

    told = f"{len(per_s)} intervals of {width_s:g} s; least {min(per_s):,.1f}, most {max(per_s):,.1f} a second"
    return _plot(name, title, told, draw)


def histogram(name: str, title: str, values: npt.NDArray[np.int64], *, unit: str) -> Plot:
    """How many values fall where."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        counts, edges = bins(values)
        axes.bar(edges[:-1] - 0.5, counts, width=np.diff(edges) * 0.96, align="edge", color=ONE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(unit)
        axes.set_ylabel("rows")
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6)

    low, mid, high = (int(each) for each in np.percentile(values, [0, 50, 100]))
    return _plot(name, title, f"{len(values):,} rows; least {low:,}, median {mid:,}, most {high:,} {unit}", draw)


def bins(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Counts and edges of at most BARS bins, each of the same whole number of values."""
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // BARS)
    edges = np.arange(low, high + width + 1, width, dtype=np.float64)
    counts, _ = np.histogram(values, edges)
    return counts, edges


def trend(name: str, title: str, values: Sequence[float | None], *, unit: str) -> Plot:
    """One figure of run after run; where it was not measured there is a gap."""

    def draw(axes: "Axes") -> None:
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        axes.plot([place for place, _ in known], [value for _, value in known], color=ONE, marker="o", markersize=4)
        axes.set_ylabel(unit)
        axes.set_xlabel("runs, oldest first")
        axes.set_xticks([])
        axes.set_ylim(0, 1.1 * max(value for _, value in known) or 1)
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6)

    told = [f"{value:.4g}" for value in values if value is not None]
    return _plot(name, title, f"{len(values)} runs; first {told[0]}, last {told[-1]} {unit}", draw)


def _time_unit(seconds: float) -> tuple[float, str]:
    return next(
        (each for each in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")) if seconds > 3 * each[0]),
        (1.0, "seconds"),
    )


def _plot(name: str, title: str, told: str, draw: Callable[["Axes"], None]) -> Plot:
    # Where its home is read-only, or its cache of fonts not there yet, it says so: of no use to who reads of a run.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # It takes a second to import: who makes no report does not wait for it.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",  # letters stay text: to be found, read aloud, and small
        "svg.hashsalt": name,  # the same report twice is the same bytes
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with rc_context(style):
        figure = Figure(figsize=(_WIDE, _HIGH), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return Plot(title, Markup(_inside_a_page(out.getvalue(), name, title, told)))  # noqa: S704 – matplotlib escapes text


def _inside_a_page(svg: str, name: str, title: str, told: str) -> str:
    """The SVG without what belongs to a file of its own: its ids made unique, its size that of its place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "")  # inside HTML it is known
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    for placeholder, variable in _FILLED.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    ids = f"{name}-title {name}-desc"
    words = f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(told)}</desc>'
    start, end = svg.index("<svg"), svg.index(">")
    return f'{svg[start:end]} role="img" aria-labelledby="{ids}">{words}{svg[end + 1 :]}'
