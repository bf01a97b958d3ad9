"""The config that the newest run of an output left, for commands that have none of their own."""

from pipelines import storage
from pipelines.compose import recorded
from pipelines.config import RunConfig


def newest(sink_uri: str) -> tuple[str, RunConfig] | None:
    """The newest run of an output, and its config; None: none left one.

    Raises:
        UserError: it left one that cannot be used.
    """
    listed = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    left = [stored for stored in listed if stored.path.endswith("/config.yaml")]
    if not left:
        return None
    last = max(left, key=lambda stored: stored.path)  # a run id begins with its time
    return last.path.partition("/")[0], recorded(storage.get(last.uri).decode(), storage.shown(last.uri))


def newest_config(sink_uri: str) -> RunConfig | None:
    """The config of the newest run of an output; None: none left one. Raises UserError for one that cannot be used."""
    found = newest(sink_uri)
    return None if found is None else found[1]


def retain_hours(sink_uri: str) -> float:
    """For which replaced files stay there."""
    config = newest_config(sink_uri)
    return 0.0 if config is None else config.sink.retain_hours
