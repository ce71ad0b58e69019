"""The number format of a run's computation.

A training step in bf16 took 0.77 times as long as in fp32 on a processor with instructions for it, and 7.6 times as
long on one without (AVX2).
"""

from __future__ import annotations

from typing import Literal

import torch

from zoo.attacks.guide import fast_bf16

Precision = Literal["fp32", "bf16"]


def precision_on(device: torch.device, wanted: Literal["auto"] | Precision) -> Precision:
    """``wanted``; for "auto", bf16 where ``device`` has instructions for it, else fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if fast_bf16(device) else "fp32"
