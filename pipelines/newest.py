"""The config that the newest run of an output left, for commands that have none of their own."""

from pipelines import storage
from pipelines.compose import recorded
from pipelines.config import RunConfig


def newest_config(sink_uri: str) -> RunConfig | None:
    """The config of the newest run of an output; None: none left one. Raises UserError for one that cannot be used."""
    listed = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    left = [stored.uri for stored in listed if stored.path.endswith("/config.yaml")]
    if not left:
        return None
    newest = max(left)  # a run id begins with its time
    return recorded(storage.get(newest).decode(), storage.shown(newest))


def retain_hours(sink_uri: str) -> float:
    """For which replaced files stay there."""
    config = newest_config(sink_uri)
    return 0.0 if config is None else config.sink.retain_hours
