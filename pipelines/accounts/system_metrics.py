"""What the driver's machine is doing, taken by MLflow's own monitors: the tab "System metrics" of a run there.

MLflow's thread for it is not used: it gives up when its server fails once, and its end waits for a server without a
bound. Here the monitors are asked by the thread that makes all calls to MLflow. To import this is cheap, to ask is not.
"""

import logging
from typing import Any

log = logging.getLogger(__name__)


class SystemMetrics:
    """Of this machine: CPU, memory, disk, network, and NVIDIA GPUs where there are any. For one thread."""

    def __init__(self) -> None:
        self._monitors: list[Any] | None = None  # None: not asked yet

    def sample(self) -> dict[str, float]:
        """The figures since the last sample, by MLflow's names; none the first time, when there is no time since."""
        first = self._monitors is None
        if self._monitors is None:
            self._monitors = _monitors()
        found: dict[str, float] = {}
        try:
            for monitor in self._monitors:
                monitor.collect_metrics()
                found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
        except OSError as error:  # of psutil, on a machine whose /proc is closed
            log.warning("system metrics are absent: %s", error)
            self._monitors = []
        return {} if first else found


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    always: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
    gpus: Any = GPUMonitor
    found = [monitor() for monitor in always]
    try:
        found.append(gpus())
    except (ImportError, RuntimeError):  # as it says that there is no GPU, or no driver
        log.info("no NVIDIA GPU on the driver's machine: its system metrics have none")
    return found
