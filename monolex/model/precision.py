"""What precision `auto` means for a model here: bf16 where it is native, close to fp32 and faster, else fp32.

The choice is part of a result's identity (the weights' hash names their precision), so it follows from rules and not
from a stopwatch's noise: the size of the model, what the processor says of itself, and a divergence that is far from
its limit in every model that was tried. The one clock, of the processor's own time, only keeps bf16 from where it
clearly does not pay.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.config import Dtype
from monolex.errors import UserError
from monolex.model.hooks import logits
from monolex.model.language_model import LanguageModel

LEAST_PARAMETERS: Final = 50_000_000
"""Models below this stay in fp32: a run over them spends its time on dictionaries."""
MOST_KL: Final = 0.005
"""Nats a token that bf16 may diverge from fp32 on the probe; SmolLM2-135M has .0011, a dictionary costs far more."""
LEAST_SPEEDUP: Final = 1.2
"""Times as fast as fp32 that bf16 must be on a CPU; where it is native it is 2 or more."""
PROBE_TOKENS: Final = 128
PROBE: Final = """The committee met on Tuesday to decide whether the old bridge should be repaired or replaced.
Dr. Ellen Marsh, who had studied the river for twenty years, said: "If we wait another winter, the pier will move by
3.5 cm." Nobody answered. In 1987 the town had paid $240,000 for a survey that came to the same end, and then lost it.

def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0

Heat a cup of milk until it steams, whisk in the eggs and stir over a low flame."""


class Precision(NamedTuple):
    """What `auto` chose for a model, and why."""

    dtype: Dtype
    """`fp32` or `bf16`."""
    reason: str
    """In words."""
    kl: float | None = None
    """KL(fp32 ‖ bf16) of the logits in nats, mean over the tokens of a short text; None where it was not measured."""
    speedup: float | None = None
    """Time of fp32 over that of bf16 on that text; None where it was not measured."""
    fingerprint: str | None = None
    """Of the weights in ``dtype`` that were measured; None where none were."""

    def __str__(self) -> str:
        return f"model_dtype auto: {self.dtype} ({self.reason})"


def objection(parameters: int, where: torch.device) -> str:
    """Why a model of that size stays in fp32 on a device, whatever its logits; empty if nothing speaks against bf16."""
    if parameters < LEAST_PARAMETERS:
        return f"{parameters:,} parameters, and below {LEAST_PARAMETERS:,} a run has little of it"
    return lacking(where)


def lacking(where: torch.device) -> str:
    """Why bf16 is not native on a device, as far as it can be told; empty if it is."""
    if where.type == "cuda":
        major, minor = torch.cuda.get_device_capability(where)
        # AMD's accelerators go by other numbers; all that this torch supports have bf16
        old = major < 8 and torch.version.hip is None
        return f"CUDA compute capability {major}.{minor}, and bf16 needs 8.0" if old else ""
    if where.type == "cpu":
        return "" if _native_cpu() else "this CPU has no bf16 of its own, or torch does not use it"
    # Metal computes in bf16 on every chip from macOS 14 on, but does not say on which it only widens to float32.
    return f'whether {where.type} has bf16 of its own cannot be told; set model_dtype = "bf16" to use it'


def _native_cpu() -> bool:
    """x86 with AVX512-BF16 or AMX, or ARM with its bf16 extension, and a torch whose matrix products use it.

    What torch supports is asked too, but alone it says yes wherever it can emulate.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the first processor can do, in Linux's words; where there is no Linux, in torch's, if this torch tells."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = getattr(torch.cpu, "get_capabilities", dict)()
        return {name for name, has in told.items() if has is True}
    lines = (line.partition(":") for line in text.splitlines())
    return next((set(flags.split()) for name, _, flags in lines if name.strip() in ("flags", "Features")), set())


def compared(load: Callable[[Dtype], LanguageModel]) -> Precision:
    """fp32 beside bf16 on a short text; ``load`` gives the model in a precision. One is in memory at a time."""
    before, slow, wide = _read(load("fp32"))
    if len(before) < 2:
        return Precision("fp32", "its tokenizer reads nothing of the text that bf16 is measured on", fingerprint=wide)
    try:
        lm = load("bf16")
    except UserError as error:
        return Precision("fp32", f"in bf16 it is refused: {error}", fingerprint=wide)
    after, fast, narrow = _read(lm)
    cpu = lm.device.type == "cpu"
    return decided(divergence(before, after), slow / fast, cpu=cpu, fingerprints=(wide, narrow))


def decided(kl: float, speedup: float, *, cpu: bool, fingerprints: tuple[str, str]) -> Precision:
    """The choice by the measured numbers; ``fingerprints`` are those of the weights in fp32 and in bf16.

    An accelerator's time on a short text is that of starting its kernels, and bf16 is worth its memory there anyway.
    """
    numbers = f"KL {kl:.4f} nats a token to fp32"
    if not kl <= MOST_KL:  # NaN too
        return Precision("fp32", f"bf16 has {numbers}, above {MOST_KL:g}", kl, speedup, fingerprints[0])
    numbers += f", {speedup:.1f} times as fast"
    if cpu and speedup < LEAST_SPEEDUP:
        return Precision("fp32", f"bf16 has {numbers}, below {LEAST_SPEEDUP:g}", kl, speedup, fingerprints[0])
    return Precision("bf16", numbers, kl, speedup, fingerprints[1])


def _read(lm: LanguageModel) -> tuple[Float[Tensor, "tokens vocab"], float, str]:
    """Log probabilities on the probe, the seconds of the fastest of three forwards, and the hash of the weights.

    On a CPU the seconds are the processor's own, whatever else it does.
    """
    assert lm.tokenizer is not None, "a loaded model has a tokenizer"
    ids = torch.tensor([lm.tokenizer(PROBE)["input_ids"][: min(PROBE_TOKENS, lm.max_context)]], dtype=torch.int64)
    if ids.shape[1] < 2:
        return torch.zeros(ids.shape[1], lm.vocab_size), 0.0, lm.fingerprint
    clock = time.process_time if lm.device.type == "cpu" else time.perf_counter
    runs = []
    for _ in range(3):
        started = clock()
        out = logits(lm, ids, mask=torch.ones_like(ids))[0].float().cpu()
        runs.append((max(clock() - started, 1e-9), out))
    return runs[-1][1].log_softmax(-1), min(seconds for seconds, _ in runs), lm.fingerprint


def divergence(before: Float[Tensor, "tokens vocab"], after: Float[Tensor, "tokens vocab"]) -> float:
    """KL(before ‖ after) of log probabilities in nats, mean over tokens; NaN where any is."""
    rows = zip(before, after, strict=True)
    return float(torch.stack([(p.exp() * (p - q)).sum(dtype=torch.float64) for p, q in rows]).mean())
