"""The number format of a run's computation.

A training step in bf16 took 0.77 times as long as in fp32 on a processor with instructions for it, and 7.6 times as
long on one without (AVX2).
"""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86-64 and ARM, as torch.cpu.get_capabilities() names them


def precision_on(device: torch.device, wanted: Literal["auto"] | Precision) -> Precision:
    """``wanted``; for "auto", bf16 where ``device`` has instructions for it, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if device.type == "cpu" and any(capabilities.get(name) for name in BF16) else "fp32"
