"""Ray's workers, made to fail: with this folder on PYTHONPATH, each of them wraps its seams as it imports the stages,
and an engine's actor those of the engine as it imports that.

Nothing happens in a process that has no FAULTS in its environment.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def _all_seams() -> None:
    from tests.faults import seams

    seams.install()
    seams.tweak_as_told()


def _seams_of_an_engine() -> None:
    from tests.faults import seams

    seams.install_in_engine()


class _After(importlib.abc.MetaPathFinder):
    """Finds a module as it would be found, and has something done once it is loaded."""

    def __init__(self, module: str, then: Callable[[], None]) -> None:
        self._module, self._then = module, then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            self._then()

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


if os.environ.get("FAULTS") and os.environ.get("FAULTS_WORKERS"):
    sys.meta_path[:0] = [
        _After("pipelines.flow_stages", _all_seams),
        _After("actors.simulated", _seams_of_an_engine),
    ]
