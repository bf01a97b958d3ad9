"""Machine: the model's sizes and the device that engines get, and a run beside what the two allow."""

from dataclasses import dataclass, replace

from pipelines.accounts.bottleneck import Ceiling
from pipelines.accounts.cost import Bill
from pipelines.accounts.devices import Device, device_of, measured_cpu, remember, remembered
from pipelines.accounts.limits import Work
from pipelines.accounts.shape import Shape
from pipelines.accounts.starvation import Starvation
from pipelines.accounts.summary import Totals
from pipelines.engine_choice import Hardware
from pipelines.job.model import cache_dir
from pipelines.preparation import Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The model's sizes and the device that engines get. None: not in the tables; of the simulated engine, never."""

    gpu: str | None  # as its driver calls it; None: on CPU
    shape: Shape | None
    device: Device | None


def machine(prepared: Prepared, *, measure: bool) -> Machine:
    """What model and hardware are. To `measure` a CPU takes half a second; else it is as a plan measured it last."""
    gpu = prepared.hardware.gpu_name if prepared.engine.device == "gpu" else None
    if prepared.engine.kind == "simulated":
        return Machine(gpu=gpu, shape=None, device=None)
    device = device_of(gpu) if prepared.engine.device == "gpu" else _this_cpu(prepared.hardware, measure)
    return Machine(gpu=gpu, shape=Shape.of_folder(prepared.model.tokenizer_folder), device=device)


def ceiling_of(
    prepared: Prepared,
    totals: Totals,
    steady_s: float | None,
    bill: Bill | None,
    hosts: Starvation | None,
) -> Ceiling:
    """A run beside the limits of its hardware; nothing is measured for it, so a CPU is known after a plan alone.

    `hosts`: what they said while it ran; None: it asked nothing.
    """
    on = machine(prepared, measure=False)
    work = Work.of_totals(
        rows=totals.rows_ok - totals.rows_carried - totals.rows_shared,
        prompt_tokens=totals.prompt_tokens,
        cached_tokens=totals.cached_tokens,
        output_tokens=totals.output_tokens,
    )
    output_tokens, prompt_tokens = hosts.longest() if hosts else (0, 0)
    return Ceiling.of(
        replace(work, longest_tokens=float(output_tokens), longest_context=float(prompt_tokens)),
        steady_s,
        None if bill is None else bill.parts,
        prepared.engine,
        on.shape,
        on.device,
        replicas=(hosts.replicas() if hosts else 0.0) or 1.0,
        quantized=prepared.model.quantization,
        starved=hosts.found() if hosts else None,
    )


def _this_cpu(hardware: Hardware, measure: bool) -> Device | None:
    """This machine's CPU by measuring: the best of now and of earlier times, when less may have run beside it."""
    bfloat16 = bool({"avx512_bf16", "amx_bf16"} & hardware.cpu_flags)
    key = f"{hardware.cores} cores {' '.join(sorted(hardware.cpu_flags))}"
    before = remembered(cache_dir(), key)
    if not measure:
        return before
    now = measured_cpu(bfloat16=bfloat16, cores=hardware.cores)
    if before is not None:
        now = replace(
            now,
            flops={name: max(rate, before.flops.get(name, 0.0)) for name, rate in now.flops.items()},
            bytes_per_s=max(now.bytes_per_s, before.bytes_per_s),
        )
    remember(now, cache_dir(), key)
    return now
