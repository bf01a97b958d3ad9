"""The engines that there are: a config names one of them, it never names code."""

from collections.abc import Callable, Mapping

from actors.engine import Engine, EngineConfig
from actors.simulated import SimulatedEngine


def _vllm(config: EngineConfig) -> Engine:
    from actors.vllm_engine import VllmEngine  # imports vllm: in the actor only, after its environment is set

    return VllmEngine(config)


ENGINES: Mapping[str, Callable[[EngineConfig], Engine]] = {"vllm": _vllm, "simulated": SimulatedEngine}
