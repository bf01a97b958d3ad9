"""GPU figures, with a fake at the boundary of NVML's library; and the truth where there is none."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from actors.gpu_monitor import GpuMonitor, gpu_usage, of_the_run, open_nvml

GIB = 2**30


class FakeNvml:
    """`pynvml` as far as it is used: devices with a script of (percent busy, bytes used); None: the call fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, *scripts: list[tuple[int, int] | None]) -> None:
        self.scripts: list[Iterator[tuple[int, int] | None]] = [iter(script) for script in scripts]
        self.used: dict[int, int] = {}

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.scripts)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"NVIDIA Fake {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * GIB, used=self.used.get(handle, 0))

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        step = next(self.scripts[handle])
        if step is None:
            raise self.NVMLError("GPU is lost")
        percent, self.used[handle] = step
        return SimpleNamespace(gpu=percent, memory=0)


def test_each_gpu_has_its_own_means_and_peak() -> None:
    fake = FakeNvml([(0, GIB), (50, 3 * GIB), (100, 2 * GIB)], [(10, GIB)] * 3)
    monitor = GpuMonitor("10.0.0.3", every_s=0, nvml=lambda: fake)

    for _ in range(3):
        monitor.sample()
    first, second = monitor.read()

    assert (first.node, first.index, first.name, first.memory_total_bytes) == ("10.0.0.3", 0, "NVIDIA Fake 0", 80 * GIB)
    assert first.utilization == pytest.approx(0.5)
    assert first.memory_bytes == pytest.approx(2 * GIB)
    assert (first.memory_peak_bytes, first.samples) == (3 * GIB, 3)
    assert second.utilization == pytest.approx(0.1)


def test_a_gpu_that_does_not_answer_is_absent_from_the_means_and_the_others_are_not() -> None:
    fake = FakeNvml([None, (80, GIB)], [(20, GIB), (20, GIB)], [None, None])
    monitor = GpuMonitor("n", every_s=0, nvml=lambda: fake)

    monitor.sample()
    monitor.sample()
    found = monitor.read()

    assert [gpu.utilization for gpu in found] == [pytest.approx(0.8), pytest.approx(0.2), None]
    assert [gpu.samples for gpu in found] == [1, 2, 0]


def test_the_thread_samples_by_itself_until_closed() -> None:
    busy = FakeNvml([(40, GIB)] * 10_000)
    monitor = GpuMonitor("n", every_s=0.001, nvml=lambda: busy)
    while monitor.read()[0].samples < 3:
        pass
    monitor.close()

    assert monitor.read()[0].utilization == pytest.approx(0.4)


def test_without_nvml_there_are_no_figures() -> None:
    monitor = GpuMonitor("n", nvml=lambda: None)
    monitor.sample()

    assert monitor.read() == ()
    assert gpu_usage([]) == ()


def test_nvml_is_opened_or_absent_and_never_an_error() -> None:
    nvml = open_nvml()  # the real library, on this very machine

    found = GpuMonitor("here", every_s=0, nvml=lambda: nvml)
    found.sample()

    if nvml is None:
        assert found.read() == ()
    else:
        assert all(gpu.utilization is not None and 0 <= gpu.utilization <= 1 for gpu in found.read())
        assert len(found.read()) == nvml.nvmlDeviceGetCount()


def test_the_figures_of_a_run_are_those_of_the_gpus_that_its_engines_hold() -> None:
    fake = FakeNvml([(90, GIB)], [(0, GIB)], [(0, GIB)], [(100, GIB)])
    monitor = GpuMonitor("10.0.0.3", every_s=0, nvml=lambda: fake)
    monitor.sample()
    seen = monitor.read()

    assert [usage.index for usage in of_the_run(seen, {"10.0.0.3/0", "10.0.0.4/1"})] == [0]
    assert of_the_run(seen, set()) == seen
    assert of_the_run(seen, {"10.0.0.3/GPU-1234"}) == seen
