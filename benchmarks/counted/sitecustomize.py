"""Counts the answers of the simulated engine from outside: product code knows nothing of it.

Python imports a module of this name when it starts, where this folder is on PYTHONPATH. Each answer adds one byte to
the file that ANSWERED_FILE names, by one write to the kernel: the count is exact, over any number of processes, and
whoever is killed by SIGKILL has counted what it answered.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

VARIABLE = "ANSWERED_FILE"
COUNTED = "actors.simulated"


class _WhenImported(importlib.abc.MetaPathFinder):
    """Wraps `answer_by_hash` once its module is there; most of Ray's processes never import it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != COUNTED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            module.answer_by_hash = _counted(module.answer_by_hash, os.environ[VARIABLE])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _counted(answer: Callable[..., Any], path: str) -> Callable[..., Any]:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @functools.wraps(answer)
    def counted(*args: Any, **kwargs: Any) -> Any:
        os.write(file, b".")
        return answer(*args, **kwargs)

    return counted


if VARIABLE in os.environ:
    sys.meta_path.insert(0, _WhenImported())
