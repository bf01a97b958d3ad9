"""Bottleneck: how near a run came to the limits of its hardware, what held it back, and what to change.

What held it back is the largest of the parts that its devices' time went into (`attribution.py`), or want of rows,
where engines had room for more during a larger share of it (`starvation.py`). What a change would gain is an upper
estimate: the time of that part gone, or of arithmetic and memory as much of it as the change saves. Prefill and decode
are told apart by their tokens, which is an estimate, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from actors.engine import EngineConfig
from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.devices import Device
from pipelines.accounts.limits import Achieved, Limits, Work, achieved, limits
from pipelines.accounts.shape import Shape
from pipelines.accounts.starvation import Stage, Starved

_FEEDING: Mapping[Stage, str] = MappingProxyType(
    {
        "read": "raise cluster.read_tasks, or put the corpus nearer",
        "tokenize": "raise cluster.read_tasks, which tokenize as well, or give them more CPUs",
        "feed": "raise engine.units_in_flight; with dedup=run, see whether the book of answers is slow (dedup=none)",
        "handling": "raise unit.rows, and put more rows into each shard: each unit has a price of its own",
        "write": "put the output on a faster store, or raise unit.rows",
    }
)
_WAITED_FOR: Mapping[str, str] = MappingProxyType(
    {
        "read": "rows to be read",
        "tokenize": "rows to be tokenized",
        "feed": "rows on their way into them",
        "handling": "units to be handed on",
        "write": "answers to be written",
    }
)
_MORE = "more than is known of the device; a CPU is as pipelines.plan measured it, perhaps beside other work"
_HALF = 0.5  # of prefill or decode: what fp8 saves at most, with half the bytes and twice the FLOP/s


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What held a run back."""

    part: str  # start-up, prefill, decode, tail, failed work, or idle; a Stage, where engines waited for it
    share: float  # of the devices' time, 0..1
    change: str  # the setting to change
    gain: float  # how many times as fast the run would be at most; estimated

    @property
    def sentence(self) -> str:
        """For people."""
        about = "about " if self.part in ("prefill", "decode") else ""
        time = f"{about}{self.share * 100:.0f} % of the devices' time"
        said = f"engines waited for {_WAITED_FOR[self.part]} for {time}" if self.part in _WAITED_FOR else None
        return f"{said or f'{self.part} took {time}'}: {self.change}; at most {self.gain:.1f} x as fast (an estimate)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """A run beside the limits of its hardware. None: not known, or not measured."""

    limits: Limits | None
    achieved: Achieved | None
    bottleneck: Bottleneck | None

    @classmethod
    def of(
        cls,
        work: Work,
        steady_s: float | None,
        parts: Parts | None,
        engine: EngineConfig,
        shape: Shape | None,
        device: Device | None,
        *,
        replicas: float,  # on the mean
        quantized: str | None = None,
        starved: Starved | None = None,
    ) -> Self:
        """The limits of the work that a run did, and what it made of them in `steady_s` seconds."""
        found = None
        if shape is not None and device is not None and work.rows > 0 and engine.kind != "simulated":
            found = limits(shape, device, engine, work, replicas=replicas, quantized=quantized)
        return cls(
            limits=found,
            achieved=None if found is None or steady_s is None else achieved(found, steady_s),
            bottleneck=None
            if parts is None
            else bottleneck(parts, found, engine, starved=starved, quantized=quantized),
        )

    def lines(self) -> list[tuple[str, str]]:
        """Label and text for the end of a run; none where nothing is known."""
        told = []
        if self.limits is not None and self.achieved is not None:
            shares = f"MFU {_percent(self.achieved.mfu)}, MBU at least {_percent(self.achieved.mbu)}"
            limit = f"{_percent(self.achieved.sequential)} of what {self.limits.device.name} allows one after the other"
            over = f"; {_MORE}" if self.achieved.ideal > 1 else ""
            told.append(("limits", f"{limit}, {_percent(self.achieved.ideal)} of the ideal; {shares}{over}"))
        if self.bottleneck is not None:
            told.append(("held back", self.bottleneck.sentence))
        return told

    def to_dict(self) -> dict[str, Any]:
        """For JSON; absent figures as null."""
        found, made, held = self.limits, self.achieved, self.bottleneck
        return {
            "device": found.device.name if found else None,
            "device_source": found.device.source if found else None,
            "device_date": found.device.date if found else None,
            "compute_s": found.compute_s if found else None,
            "memory_s": found.memory_s if found else None,
            "tail_s": found.tail_s if found and found.tail_s else None,  # 0: the longest answer is not known
            "ideal_s": found.ideal_s if found else None,
            "sequential_s": found.sequential_s if found else None,
            "achieved_ideal": made.ideal if made else None,
            "achieved_sequential": made.sequential if made else None,
            "mfu": made.mfu if made else None,
            "mbu_at_least": made.mbu if made else None,
            "bottleneck": held.part if held else None,
            "bottleneck_share": held.share if held else None,
            "change": held.change if held else None,
            "gain_at_most_estimated": held.gain if held else None,
        }


def bottleneck(
    parts: Parts,
    found: Limits | None,
    engine: EngineConfig,
    *,
    starved: Starved | None = None,
    quantized: str | None = None,
) -> Bottleneck | None:
    """The largest part of the devices' time that something can be done about; None: there was no time.

    `starved`: the stage that engines waited for, where that was seen.
    """
    spent = {name: ns / NS for name, ns in parts.known() if name != "shutdown"}
    total = parts.total / NS
    if total <= 0 or not any(spent.values()):
        return None
    name = max(spent, key=lambda part: spent[part])
    share = spent[name] / total
    if starved is not None and (name == "idle" or starved.share > share):
        share = max(share, starved.share) if name == "idle" else starved.share
        return Bottleneck(part=starved.stage, share=share, change=_FEEDING[starved.stage], gain=_gain(share))
    part, change, saved = {
        "rejected": ("wrong guesses", "leave engine.speculation out, or lower engine.speculation.tokens", 1.0),
        "startup": ("start-up", "give a run more rows, and keep weights and compiled code on the node", 1.0),
        "idle": ("idle", "see the report for when engines had no rows", 1.0),
        "tail": (
            "tail",
            "leave unit.shrink on, so that replicas end together, or lower engine.replicas",
            1.0,
        ),
        "failed": ("failed work", "see the log for why engines or rows failed", 1.0),
        "prefill": ("prefill", _prefill(found, engine, quantized), _HALF),
        "decode": ("decode", _decode(found, engine, quantized), _HALF),
    }[name]
    return Bottleneck(part=part, share=share, change=change, gain=_gain(share * saved))


def _gain(saved: float) -> float:
    return 1 / max(0.01, 1 - saved)


def _prefill(found: Limits | None, engine: EngineConfig, quantized: str | None) -> str:
    shared = "put what all prompts share first, so that it is computed once"
    return (
        f"precision=fp8, and {shared}"
        if _takes_fp8(found, engine) and not (quantized or engine.quantization)
        else shared
    )


def _decode(found: Limits | None, engine: EngineConfig, quantized: str | None) -> str:
    shorter = "ask for shorter answers"
    if found is not None and found.memory_s <= found.decode_s:
        return shorter
    if _takes_fp8(found, engine) and not (quantized or engine.quantization):
        return f"precision=fp8, which halves what a step reads of weights; {shorter}"
    if _takes_fp8(found, engine) and not engine.kv_cache_dtype.startswith("fp8"):
        return f"precision.kv_cache_dtype=fp8, so that more rows share a reading of the weights; {shorter}"
    return f"raise batching.max_num_seqs while KV has room; {shorter}"


def _takes_fp8(found: Limits | None, engine: EngineConfig) -> bool:
    """Whether the device is known to compute in fp8; what cannot be followed is not advised."""
    return engine.device == "gpu" and found is not None and "fp8" in found.device.flops


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
