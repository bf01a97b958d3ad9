"""What holds for all tests that start real processes, whose moments a busy machine can move.

One that fails is run once more, and no more than that: what fails twice is broken. Pytest's closing line counts such
tests ("1 rerun"), and its summary names them, so that one that needs it often is seen and mended. The fault campaign
(tests/faults) is left out: what it finds once in two tries is a finding.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pytest hands over the tests of all folders."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.flaky(reruns=1))
