"""Which device a latency belongs to: a short id that a person can read, and that is the same at every start.

Devices of one id count as one device: ``amd-epyc-2c-avx512-vnni-linux-1t`` is that processor with 2 cores (as the
system sees them), on 1 thread; ``nvidia-h100-80gb-hbm3-linux`` is a GPU, whatever the processor beside it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.system.toolchain import cpu_model

THIS = "this"  # stands for the present machine
# Instructions that decide how fast a convolution is, as Linux calls them: by the name in an id.
INSTRUCTIONS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_tile", "amx_int8"),
    "neon": ("asimd", "neon"),
}
ARM = ("arm64", "aarch64")
GPUS = Path("/proc/driver/nvidia/gpus")
CPUINFO = Path("/proc/cpuinfo")


def cpu_id(threads: int) -> str:
    """The id of this machine's processor on ``threads`` threads."""
    return f"{_machine()}-{threads}t"


def gpu_id(name: str) -> str:
    """The id of the GPU that its driver calls ``name``."""
    return f"{_slug(name)}-{platform.system().lower()}"


def is_this(device: str) -> bool:
    """Whether ``device`` is the id of the processor here, on any number of threads, or of an NVIDIA GPU here."""
    return re.fullmatch(re.escape(_machine()) + r"-\d+t", device) is not None or device in map(gpu_id, _gpus())


def remote_id(facts: Mapping[str, Any], threads: int) -> str:
    """The id of another machine, from the facts that :mod:`zoo.export.remote.fingerprint` collects there."""
    if facts["device"] == "cuda":
        return f"{_slug(facts['gpu'].split(',')[0])}-{facts['os'].lower()}"
    found = ["neon"] if facts["machine"].lower() in ARM else _known(facts.get("isa", "").split())
    return f"{_named(facts['cpu'], facts['cores'], found, facts['os'])}-{threads}t"


def _machine() -> str:
    return _named(cpu_model(), os.cpu_count(), _instructions(), platform.system())


def _named(cpu: str, cores: int | None, instructions: list[str], system: str) -> str:
    name = re.sub(r"\((r|tm)\)|\b(cpu|processor|\d+-core)\b|@.*", " ", cpu.lower())
    return "-".join([_slug(name), f"{cores}c", *instructions, system.lower()])


def _instructions() -> list[str]:
    """The :data:`INSTRUCTIONS` that the system lists; AVX2 is left out where there is AVX-512."""
    if platform.machine().lower() in ARM:  # where it is part of the architecture
        return ["neon"]
    try:
        text = CPUINFO.read_text()
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return _known(line[1].split() if line else [])


def _known(flags: Iterable[str]) -> list[str]:
    listed = set(flags)
    found = [name for name, any_of in INSTRUCTIONS.items() if listed & set(any_of)]
    return [name for name in found if name != "avx2" or "avx512" not in found]


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver lists (Linux); none is imported, none is asked."""
    texts = [path.read_text() for path in GPUS.glob("*/information")]
    return [match[1] for text in texts if (match := re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE))]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
