"""Where alerts lie: <sink>/runs/<run id>/alerts/<rule>.json, and <rule>.ack.json once somebody has acknowledged.

The run alone writes the first, the command `pipelines.alerts` alone the second, so that neither overwrites the other.
An acknowledgement is of one raising: it names its time.
"""

import json
import logging
from dataclasses import asdict, dataclass, fields

from pipelines import storage
from pipelines.accounts.alert_rules import Alert, acknowledged
from pipelines.gathered import gathered
from pipelines.redact import redacted

logger = logging.getLogger(__name__)

_BY = 100  # characters of a name
_ACK = ".ack.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Who has seen to an alert."""

    by: str
    at: float  # seconds since the epoch
    raised_at: float  # of the alert


def keep(sink_uri: str, run: str, alert: Alert) -> None:
    """Store where an alert stands. Raises StoreFailed."""
    storage.put(_uri(sink_uri, run, f"{alert.rule}.json"), _json({"version": 1, **asdict(alert)}))


def kept(sink_uri: str) -> list[tuple[str, Alert]]:
    """All alerts of an output, each with its run, as acknowledged; the oldest run first.

    Raises:
        UserError: the output cannot be listed.
        StoreFailed: the store refused, or stayed away.
    """
    paths = sorted(stored.path for stored in storage.listing(storage.join(sink_uri, "runs"), missing_ok=True))
    ours = [path for path in paths if path.partition("/")[2].startswith("alerts/") and path.endswith(".json")]
    texts = dict(zip(ours, gathered([storage.join(sink_uri, "runs", path) for path in ours]), strict=True))
    found = []
    for path, text in texts.items():
        run, _, name = path.partition("/alerts/")
        alert = None if name.endswith(_ACK) or text is None else _alert(text, run, name.removesuffix(".json"))
        if alert is not None:
            said = _acknowledged(texts.get(path.removesuffix(".json") + _ACK), run, alert)
            found.append((run, alert if said is None else acknowledged(alert, by=said.by, at=said.at)))
    return found


def _alert(text: bytes, run: str, rule: str) -> Alert | None:
    try:
        found = json.loads(text)
        alert = Alert(**{each.name: found[each.name] for each in fields(Alert)})
        if alert.rule != rule:
            raise ValueError("it is of another rule")
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("the alert %s of run %s is not understood (%s)", rule, run, type(error).__name__)
        return None
    return alert


def acknowledge(sink_uri: str, run: str, alert: Alert, *, by: str, at: float) -> None:
    """Say that somebody sees to it. Raises StoreFailed."""
    said = Acknowledgement(by=redacted(by)[:_BY], at=at, raised_at=alert.raised_at or 0.0)
    storage.put(_uri(sink_uri, run, f"{alert.rule}{_ACK}"), _json(asdict(said)))


def acknowledgement(sink_uri: str, run: str, alert: Alert) -> Acknowledgement | None:
    """Of this raising of the alert; None: nobody has. Raises StoreFailed."""
    try:
        text = storage.get(_uri(sink_uri, run, f"{alert.rule}{_ACK}"))
    except FileNotFoundError:
        return None
    return _acknowledged(text, run, alert)


def _acknowledged(text: bytes | None, run: str, alert: Alert) -> Acknowledgement | None:
    if text is None:
        return None
    try:
        found = Acknowledgement(**json.loads(text))
        by, at, raised_at = str(found.by)[:_BY], float(found.at), float(found.raised_at)
    except (ValueError, TypeError) as error:
        logger.warning("who acknowledged %s of run %s is not understood (%s)", alert.rule, run, type(error).__name__)
        return None
    if alert.raised_at is None or raised_at != alert.raised_at:
        return None
    return Acknowledgement(by=by, at=at, raised_at=raised_at)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def _uri(sink_uri: str, run: str, name: str) -> str:
    return storage.join(sink_uri, "runs", run, "alerts", name)
