"""Device ids for latencies: short, readable, and the same on every run.

Machines with the same id count as one device. ``amd-epyc-2c-avx512-vnni-linux-1t`` is a CPU with 2 cores (as the
system reports them) on 1 thread; ``nvidia-h100-80gb-hbm3-linux`` is a GPU, with any CPU.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.system.fingerprint import ARM, cpu_name, isa

THIS = "this"  # means this machine
# Instruction sets that decide the speed of a convolution: the name in an id, and the CPU flags of Linux.
INSTRUCTIONS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_tile", "amx_int8"),
    "neon": ("asimd", "neon"),
}
GPUS = Path("/proc/driver/nvidia/gpus")


def cpu_id(threads: int) -> str:
    """The id of this machine's CPU on ``threads`` threads."""
    return f"{_machine()}-{threads}t"


def gpu_id(name: str) -> str:
    """The id of the GPU with the driver's name ``name``."""
    return f"{_slug(name)}-{platform.system().lower()}"


def is_this(device: str) -> bool:
    """Whether ``device`` is the id of this machine's CPU, on any number of threads, or of one of its NVIDIA GPUs."""
    return re.fullmatch(re.escape(_machine()) + r"-\d+t", device) is not None or device in map(gpu_id, _gpus())


def remote_id(facts: Mapping[str, Any], threads: int) -> str:
    """The id of another machine, from the facts that :mod:`zoo.system.fingerprint` collects there."""
    if facts["device"] == "cuda":
        return f"{_slug(facts['gpu'].split(',')[0])}-{facts['os'].lower()}"
    instructions = ["neon"] if facts["machine"].lower() in ARM else _names_of(facts.get("isa", "").split())
    return f"{_name(facts['cpu'], facts['cores'], instructions, facts['os'])}-{threads}t"


def _machine() -> str:
    return _name(cpu_name(), os.cpu_count(), _instructions(), platform.system())


def _name(cpu: str, cores: int | None, instructions: list[str], system: str) -> str:
    name = re.sub(r"\((r|tm)\)|\b(cpu|processor|\d+-core)\b|@.*", " ", cpu.lower())
    return "-".join([_slug(name), f"{cores}c", *instructions, system.lower()])


def _instructions() -> list[str]:
    """Names of the :data:`INSTRUCTIONS` of this CPU; AVX2 is omitted if there is AVX-512."""
    if platform.machine().lower() in ARM:  # part of the architecture
        return ["neon"]
    return _names_of(isa().split())


def _names_of(flags: Iterable[str]) -> list[str]:
    listed = set(flags)
    names = [name for name, any_of in INSTRUCTIONS.items() if listed & set(any_of)]
    return [name for name in names if name != "avx2" or "avx512" not in names]


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the Linux driver lists; no GPU library is imported."""
    texts = [path.read_text(encoding="utf-8") for path in GPUS.glob("*/information")]
    return [match[1] for text in texts if (match := re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE))]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
