"""What a run found of its answers, beside the output: <sink>/runs/<run id>/quality.json. Later runs compare with it."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from pipelines import storage
from pipelines.accounts.agreement import calibration_error
from pipelines.accounts.panel import Panel, changed, panel
from pipelines.accounts.quality import Drift, Measures, drift
from pipelines.accounts.texts import Look, Texts, texts
from pipelines.redact import redacted
from pipelines.sink.receipt import Receipt

log = logging.getLogger(__name__)

FILE = "quality.json"
VERSION = 1
_OF_DRIFT = tuple(one.name for one in fields(Drift) if one.name not in ("rows_new", "rows_old", "p_values"))
RUNS_LOOKED_AT = 50  # back from a run, for one of its job


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of one run. It lies there once the run has ended, whatever its exit code."""

    run_id: str
    job: str
    model: str
    fingerprint: str
    measures: Measures  # of the units that the run committed itself
    against: str | None = None  # the run that it was compared with; None: there was none to compare with
    drift: Drift | None = None
    panel: Panel = field(default_factory=Panel)  # of the output as the run left it
    panel_rows: int | None = None  # of this panel and the other run's; None: there is none to compare with
    panel_changed: int | None = None  # of them, those with another answer
    texts: Texts | None = None  # of a sample of the run's answers; None: they hold no free text

    def figures(self) -> dict[str, float | None]:
        """The figures that alerts, gates and MLflow know by name. None: not measured."""
        apart = self.drift
        return {
            "refusal_rate": self.measures.refusal_rate,
            "panel_changed_share": None if not self.panel_rows else (self.panel_changed or 0) / self.panel_rows,
            "calibration_error": calibration_error(self.measures.counts.confidence),
            **{name: None if apart is None else getattr(apart, name) for name in _OF_DRIFT},
            **(self.texts or Texts(rows=0)).figures(),
        }

    def to_plain(self) -> dict[str, Any]:
        """For JSON, without the measures."""
        return {
            "version": VERSION,
            "run_id": self.run_id,
            "job": self.job,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "against": self.against,
            "drift": None if self.drift is None else self.drift.to_plain(),
            "panel_rows": self.panel_rows,
            "panel_changed": self.panel_changed,
            "texts": None if self.texts is None else asdict(self.texts),
        }

    def to_json(self) -> str:
        whole = self.to_plain() | {"measures": self.measures.to_plain(), "panel": self.panel.to_plain()}
        return json.dumps(whole, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` made.

        Raises:
            ValueError: it is something else.
        """
        try:
            plain: Mapping[str, Any] = json.loads(text)
            if plain["version"] != VERSION:
                raise ValueError(f"version {plain['version']!r}, not {VERSION}")
            return cls(
                **{name: str(plain[name]) for name in ("run_id", "job", "model", "fingerprint")},
                measures=Measures.from_plain(plain["measures"]),
                against=plain["against"],
                drift=None if plain["drift"] is None else Drift.from_plain(plain["drift"]),
                panel=Panel.from_plain(plain["panel"]),
                panel_rows=plain["panel_rows"],
                panel_changed=plain["panel_changed"],
                texts=None if plain.get("texts") is None else Texts.from_plain(plain["texts"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def at_the_end(
    sink_uri: str,
    run_id: str,
    *,
    job: str,
    model: str,
    fingerprint: str,
    measures: Measures,
    current: Iterable[Receipt] = (),
    columns: Sequence[str] = (),
    own: Iterable[Receipt] = (),
    look: Look | None = None,
) -> Quality:
    """Compare a run's answers, and the panel of its output, with the newest earlier run of its job that did any row.

    `current`: receipts of what the output holds now, `columns`: those that the job's contract makes; `own`: receipts
    of the run itself, `look`: what of its rows is read as text. What is found is kept in FILE.

    Raises:
        StoreFailed: the store refused or stayed away.
    """
    before = earlier(sink_uri, run_id, job=job) if measures.rows_in else None
    now = panel(sink_uri, current, columns) if measures.rows_in else Panel()
    rows, others = changed(now, before.panel) if before is not None else (None, None)
    found = Quality(
        run_id=run_id,
        job=job,
        model=model,
        fingerprint=fingerprint,
        measures=measures,
        against=None if before is None else before.run_id,
        drift=None if before is None else drift(measures, before.measures),
        panel=now,
        panel_rows=rows,
        panel_changed=others,
        texts=texts(sink_uri, own, look) if look is not None else None,
    )
    storage.put(_uri(sink_uri, run_id), redacted(found.to_json()).encode())
    return found


def of_run(sink_uri: str, run_id: str) -> Quality | None:
    """What a run found; None: it has not ended, or is older than this file."""
    try:
        return Quality.from_json(storage.get(_uri(sink_uri, run_id)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s is left out: %s", storage.shown(_uri(sink_uri, run_id)), error)
        return None


def earlier(sink_uri: str, run_id: str, *, job: str) -> Quality | None:
    """The newest run before this one that has ended, was of this job and did any row; None: there is none such among
    the last RUNS_LOOKED_AT.
    """
    listed = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    ended = (one.path.partition("/")[0] for one in listed if one.path.count("/") == 1 and one.path.endswith(f"/{FILE}"))
    for each in sorted((name for name in ended if name < run_id), reverse=True)[:RUNS_LOOKED_AT]:
        found = of_run(sink_uri, each)
        if found is not None and found.job == job and found.measures.rows_in:
            return found
    return None


def _uri(sink_uri: str, run_id: str) -> str:
    return storage.join(sink_uri, "runs", run_id, FILE)
