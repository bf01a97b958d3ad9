"""Many small files, read side by side: of a store far away each costs the way there and back, and little else."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from pipelines import storage

AT_ONCE = 16


def gathered(uris: Sequence[str]) -> Iterator[bytes | None]:
    """The bytes of each, in order; None: it is not there. No more than AT_ONCE are held at a time.

    Raises:
        StoreFailed: the store refused, or stayed away for longer than the caller has patience.
    """
    if not uris:
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(uris))) as pool:
        for start in range(0, len(uris), AT_ONCE):
            # Each in a context of its own: a caller's patience is a context variable, which threads do not inherit.
            asked = [pool.submit(copy_context().run, _get, uri) for uri in uris[start : start + AT_ONCE]]
            for one in asked:
                yield one.result()


def _get(uri: str) -> bytes | None:
    try:
        return storage.get(uri)
    except FileNotFoundError:
        return None
