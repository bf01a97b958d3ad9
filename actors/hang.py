"""Whether an engine hangs: it has rows in it, and nothing of it moves for much longer than anything took so far."""

from actors.trial import Life

FIRST_TOKEN_S = 300.0  # without a token while rows are in: before the engine's first one
NO_TOKEN_S = 60.0  # and later, at least
LONGEST_GAPS = 20  # or this many times the longest gap seen; a machine that paused once would make hours of that: at
# most FIRST_TOKEN_S


def hangs_for(life: Life, progress: object, *, rows: int, now: float) -> float | None:
    """Seconds for which it was allowed to stand still, where it has for longer; None: it moves, or may rest.

    `progress` is what moves in it. To be asked every now and then.
    """
    if rows == 0 or progress != life.progress:
        if rows and life.progress is not None:
            life.longest_gap_s = max(life.longest_gap_s or 0.0, now - life.moved_at)
        life.progress, life.moved_at = progress, now
        return None
    limit_s = FIRST_TOKEN_S
    if life.longest_gap_s is not None:
        limit_s = min(FIRST_TOKEN_S, max(NO_TOKEN_S, LONGEST_GAPS * life.longest_gap_s))
    return limit_s if now - life.moved_at > limit_s else None
