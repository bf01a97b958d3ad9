"""The gate: whether readers may see a candidate. It is compared with what they see now, and its files are proved."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.accounts.agreement import calibration_error
from pipelines.accounts.budget import too_many_errors
from pipelines.accounts.quality import Drift, Measures, drift
from pipelines.accounts.summary import Gated, Totals
from pipelines.accounts.texts import Look, Texts, texts
from pipelines.gate_config import GateConfig
from pipelines.sink.audit_files import Files
from pipelines.sink.decisions import Decision
from pipelines.sink.ledger import Ledger
from pipelines.sink.output import Output
from pipelines.sink.receipt import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found, each in a line."""

    against: tuple[str, ...] = ()  # that no approval lifts
    asking: tuple[str, ...] = ()  # that somebody has to answer for
    approved: Decision | None = None  # by whom; None: nobody
    empty: bool = False  # the candidate is what readers see
    drift: Drift | None = None  # None: nothing to compare with

    @property
    def passed(self) -> bool:
        return not self.against and (not self.asking or self.approved is not None)

    def words(self) -> str:
        """Why it did not pass, or what was overlooked and by whom."""
        if self.passed and self.approved is not None and self.asking:
            note = f": {self.approved.reason}" if self.approved.reason else ""
            return f"{'; '.join(self.asking)}; approved by {self.approved.by}{note}"
        return "passed" if self.passed else "; ".join((*self.against, *self.asking))


def judge(
    output: Output, gate: GateConfig, *, look: Look | None = None, doing: Callable[[str], None] = lambda _: None
) -> Verdict:
    """Hold the candidate of an output against the thresholds. All its units must be done.

    Drift and limits are of the rows that are new to readers; what they are compared with is all that readers see now.
    `look`: what of them is free text.
    """
    change = output.candidate()
    if not change.new and not change.gone:
        return Verdict(empty=True)
    against: list[str] = []
    asking: list[str] = []
    whole = Totals.of(output.view.current())
    if gate.max_error_rate is not None and too_many_errors(whole, gate.max_error_rate):
        share = f"{whole.rows_error:,} of {whole.rows_in:,} rows"
        against.append(f"{share} are dead letters, gate.max_error_rate={gate.max_error_rate:g}")
    if gate.max_error_rate is not None and whole.shards_unreadable:
        against.append(f"{whole.shards_unreadable:,} shards could not be read to their end")
    moved = None
    if (gate.max_drift is not None or gate.limits) and any(output.shown.current()):
        doing("comparing the answers with those that readers see")
        moved = compared(output.ledger, change.new, output.shown.current())
    psi = None if moved is None else moved.significant_psi
    if gate.max_drift is not None and psi is not None and psi > gate.max_drift:
        asking.append(f"drift: PSI {psi:.2f}, gate.max_drift={gate.max_drift:g}")
    if gate.limits and change.new:
        doing("measuring the new answers")
        asking += _beyond_limits(gate, _figures(output, change.new, moved, look))
    if gate.verify:
        doing("reading the new files")
        found = Files.of(output.tables.sink_uri, change.new, (), aside=True)
        against += [line for check in found.checks() for line in check.findings]
    if gate.approval:
        asking.append("nobody has approved, gate.approval=true")
    if (back := output.rolled_back()) is not None:
        asking.append(f"rolled back by {back.by}: {back.reason}")
    return Verdict(
        against=tuple(against),
        asking=tuple(asking),
        approved=output.publications.approval(output.fingerprint),
        drift=moved,
    )


def decide(
    output: Output, gate: GateConfig, *, look: Look | None = None, doing: Callable[[str], None] = lambda _: None
) -> Gated:
    """Publish the candidate if it passes; else leave readers what they have, and write down why."""
    verdict = judge(output, gate, look=look, doing=doing)
    if verdict.empty:
        return Gated(passed=True, words="nothing to publish")
    if verdict.passed:
        doing("publishing")
        output.publish(by="gate", reason=verdict.words())
    else:
        output.block(verdict.words())
    return Gated(passed=verdict.passed, words=verdict.words())


def compared(ledger: Ledger, new: Iterable[Receipt], shown: Iterable[Receipt]) -> Drift:
    """How far the new rows of a candidate are from those that readers see."""
    return drift(Measures.of(ledger.measured(new)), Measures.of(ledger.measured(shown)))


def _figures(
    output: Output, new: Sequence[Receipt], moved: Drift | None, look: Look | None
) -> Mapping[str, float | None]:
    """The figures that a limit may be about; without those that compare, if readers see nothing yet. None: not
    measured."""
    measures = Measures.of(output.ledger.measured(new))
    seen = texts(output.tables.sink_uri, new, look) if look is not None else None
    return {
        "accuracy": measures.accuracy,
        "refusal_rate": measures.refusal_rate,
        "calibration_error": calibration_error(measures.counts.confidence),
        **(seen or Texts(rows=0)).figures(),
        **({} if moved is None else moved.to_plain()),
    }


def _beyond_limits(gate: GateConfig, figures: Mapping[str, float | None]) -> Iterator[str]:
    """A line for each figure that is beyond its limit, or that has one and was not measured."""
    for name, limit in gate.limits.items():
        if name not in figures:
            continue
        value = figures[name]
        if value is None:
            yield f"{name} was not measured, gate.limits.{name}"
        elif breach := limit.breach(value):
            yield f"{name} {value:.3g}, gate.limits.{name}.{breach}"
