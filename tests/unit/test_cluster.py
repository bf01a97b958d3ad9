"""A Ray of one's own is started, and once more where the machine was too busy for it."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.cluster import started_ray
from pipelines.compose import compose
from pipelines.config import RunConfig, RunFailed


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (found,) = compose(["+job=classify", "engine=simulated", f"source.uri={tmp_path}/in", f"sink.uri={tmp_path}/out"])
    return found


def late(times: int) -> tuple[list[Mapping[str, Any]], Callable[..., None]]:
    """Ray's start, too late so many times; and what it was called with."""
    calls: list[Mapping[str, Any]] = []

    def init(**options: Any) -> None:
        calls.append(options)
        if len(calls) <= times:
            raise Exception("The current node timed out during startup.")

    return calls, init


def test_a_ray_that_was_too_late_is_started_once_more(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, init = late(1)
    monkeypatch.setattr(ray, "init", init)
    armed: list[bool] = []

    with caplog.at_level(logging.WARNING), started_ray(config, dict, then=lambda: armed.append(True)):
        assert armed == [True]

    assert [call["address"] for call in calls] == ["local", "local"]
    assert "started once more: The current node timed out" in caplog.text


def test_one_that_never_starts_fails_the_run_with_its_reason(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, init = late(99)
    monkeypatch.setattr(ray, "init", init)

    with pytest.raises(RunFailed, match="Ray did not start: The current node timed out"), started_ray(config, dict):
        pass

    assert len(calls) == 2


def test_a_cluster_that_is_not_there_is_asked_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, init = late(99)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")

    with pytest.raises(RunFailed, match=r"Ray did not start at 10\.0\.0\.1:6379"), started_ray(config, dict):
        pass

    assert len(calls) == 1
