"""How busy the GPUs were and how much memory they held: NVML, asked by a small actor on each node with GPUs.

Where there is no GPU or no NVML the figures are absent, never zero. A GPU is measured as a whole: what another
program does on it counts too, since NVML cannot tell whose kernels run.
"""

import importlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

logger = logging.getLogger(__name__)

EVERY_S = 1.0
NODES_EVERY_S = 30.0  # between two looks for nodes that have joined


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one moment."""

    utilization: float  # 0..1: share of NVML's own last sampling period in which a kernel ran
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUsage:
    """One GPU over a stretch of time. None: not one sample could be taken."""

    node: str  # the node's address
    index: int  # as NVML counts on this node
    name: str
    memory_total_bytes: int
    samples: int = 0
    utilization: float | None = None  # mean, 0..1
    memory_bytes: float | None = None  # mean
    memory_peak_bytes: int | None = None

    def plus(self, sample: GpuSample) -> Self:
        """With one more sample in the means."""
        count = self.samples + 1
        return replace(
            self,
            samples=count,
            utilization=_mean(self.utilization, sample.utilization, count),
            memory_bytes=_mean(self.memory_bytes, sample.memory_bytes, count),
            memory_peak_bytes=max(self.memory_peak_bytes or 0, sample.memory_bytes),
        )


def _mean(before: float | None, value: float, count: int) -> float:
    return value if before is None else before + (value - before) / count


def open_nvml() -> Any | None:
    """NVML, ready to be asked, as the module `pynvml`; None where there is no GPU, driver or library."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        logger.info("no GPU figures: %s", error)
        return None
    return nvml


class GpuMonitor:
    """The GPUs of this node, sampled once a second by a thread. Runs as a Ray actor, and without Ray in tests."""

    def __init__(self, node: str, every_s: float = EVERY_S, nvml: Callable[[], Any | None] = open_nvml) -> None:
        self._nvml = nvml()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._usage: list[GpuUsage] = []
        self._handles: list[Any] = []
        if self._nvml is None:
            return
        for index in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            name = self._nvml.nvmlDeviceGetName(handle)
            total = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
            self._handles.append(handle)
            self._usage.append(
                GpuUsage(
                    node=node,
                    index=index,
                    name=name.decode() if isinstance(name, bytes) else name,  # older libraries give bytes
                    memory_total_bytes=total,
                )
            )
        if self._handles and every_s > 0:
            threading.Thread(target=self._watch, args=(every_s,), name="gpu-monitor", daemon=True).start()

    def sample(self) -> None:
        """Ask each GPU once. A GPU that does not answer (lost, in reset) has no sample; the others have."""
        nvml: Any = self._nvml
        for place, handle in enumerate(self._handles):
            try:
                busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                used = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
            except nvml.NVMLError as error:
                logger.info("GPU %d gave no sample: %s", place, error)
                continue
            with self._lock:
                self._usage[place] = self._usage[place].plus(GpuSample(utilization=busy, memory_bytes=used))

    def read(self) -> tuple[GpuUsage, ...]:
        """Each GPU's means since the monitor's start, engines' start-up included; empty where there is none."""
        with self._lock:
            return tuple(self._usage)

    def close(self) -> None:
        """Take no more samples."""
        self._over.set()

    def _watch(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            self.sample()


def gpus_here() -> tuple[str, ...]:
    """The GPUs that Ray has given to the actor that asks, each as NODE/ID, as `of_the_run` takes them."""
    import ray

    if not ray.is_initialized():
        return ()
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return tuple(f"{ray.util.get_node_ip_address()}/{each}" for each in ids)


def of_the_run(seen: Sequence[GpuUsage], held: Collection[str]) -> tuple[GpuUsage, ...]:
    """Of all GPUs of the nodes those that the run's engines hold: others work, or idle, for somebody else.

    All of them where that cannot be told: no engine has said yet, or Ray names its GPUs by other than their number.
    """
    ours = tuple(usage for usage in seen if f"{usage.node}/{usage.index}" in held)
    return ours or tuple(seen)


class GpuMonitors(list[Any]):
    """One monitor on each live node that has GPUs, as Ray actor handles; empty where no node has any."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes: set[str] = set()
        self._looked_at = float("-inf")

    def look(self, now: float) -> None:
        """Put one on each node that has come since the last look. Ray must be up; `now` in monotonic seconds.

        A monitor asks for no CPU and no GPU, so it takes no place from an engine, and stays on its node.
        """
        if now - self._looked_at < NODES_EVERY_S:
            return
        self._looked_at = now
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        monitor = ray.remote(GpuMonitor)
        for node in ray.nodes():
            if node["NodeID"] in self._nodes or not node["Alive"] or not node["Resources"].get("GPU", 0):
                continue
            self._nodes.add(node["NodeID"])
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked = monitor.options(num_cpus=0, max_restarts=0, scheduling_strategy=place)
            self.append(asked.remote(node["NodeManagerAddress"]))


def watch_gpus() -> GpuMonitors:
    """Monitors on the nodes that there are now."""
    monitors = GpuMonitors()
    monitors.look(time.monotonic())
    return monitors


def gpu_usage(monitors: Sequence[Any], timeout_s: float = 2.0) -> tuple[GpuUsage, ...]:
    """What the monitors that answer in time have seen; a node that is gone or slow is absent."""
    import ray

    if isinstance(monitors, GpuMonitors):
        monitors.look(time.monotonic())
    asked = [monitor.read.remote() for monitor in monitors]
    if not asked:
        return ()
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s)
    seen: list[GpuUsage] = []
    for answer in ready:
        try:
            seen.extend(ray.get(answer))
        except ray.exceptions.RayError as error:
            logger.info("a GPU monitor is gone: %s", type(error).__name__)
    return tuple(sorted(seen, key=lambda usage: (usage.node, usage.index)))
