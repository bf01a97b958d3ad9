"""Width: how many rows may be in an engine at once, by how it fares with them."""

from actors.engine import EngineLoad

NARROWER = 0.8  # of its rows, when the engine had to throw one out of its KV memory
NARROWEST = 4  # it stays over max_num_seqs over this
CALM_LOOKS = 20  # looks without such a loss after which the window grows by a tenth of its full width
WIDER = 0.25  # of max_num_seqs, when the engine had nothing left while rows waited for the window
WIDEST = 3  # it stays under max_num_seqs times this


class Width:
    """Of one engine's window: `lookahead` times max_num_seqs wait in it, at first. Without a lookahead none ever do."""

    def __init__(self, max_num_seqs: int, lookahead: float) -> None:
        self._places = max_num_seqs
        self._full = max(1, int(max_num_seqs * (1 + lookahead)))
        self._narrowest = max(1, max_num_seqs // NARROWEST)
        self._widest = max(self._full, max_num_seqs * WIDEST) if lookahead else self._full
        self._preempted = 0  # by the engine, as of the last look
        self._calm = 0
        self.rows = self._full

    def see(self, load: EngineLoad, *, rows_held_up: bool) -> None:
        """How the engine is now. `rows_held_up`: rows wait for nothing but the window, and some left since last time.

        Each time that the engine has thrown out more rows for want of KV memory, to be computed again later, the window
        narrows; while it has not, it grows back by and by. Where the engine has nothing left to begin with, and the
        window alone keeps rows from it, it widens.
        """
        preempted, before = load.preemptions or 0, self._preempted
        self._preempted = preempted
        if preempted > before:
            self.rows, self._calm = max(self._narrowest, int(self.rows * NARROWER)), 0
        elif self.rows < self._full:
            self._calm += 1
            if self._calm >= CALM_LOOKS:
                self.rows, self._calm = min(self._full, self.rows + max(1, self._full // 10)), 0
        elif rows_held_up and load.waiting == 0 and load.running < self._places:
            self.rows = self._full = min(self._widest, self._full + max(1, int(self._places * WIDER)))
