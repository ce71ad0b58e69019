"""What a device is, as far as it can be found out."""

from __future__ import annotations

import glob
import os
import platform
import subprocess
from typing import Any

# What decides which kernels a runtime takes, and so its last digits and its speed.
ISA = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "sme"),
)


def fingerprint() -> dict[str, Any]:
    """What this device is; what cannot be found out is left out."""
    cpu = dict(_pairs(_read("/proc/cpuinfo")))
    lscpu = dict(_pairs(_output("lscpu"))) if "model name" not in cpu else {}
    names = (cpu.get("model name"), lscpu.get("Model name"), _output("sysctl", "-n", "machdep.cpu.brand_string"))
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    governors = {_read(path) for path in glob.glob("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}
    facts = {
        "machine": platform.machine(),
        "board": _read("/proc/device-tree/model"),
        "cpu": next((name for name in names if name), platform.processor()),
        "isa": " ".join(flag for flag in ISA if flag in flags),
        "cores": cores(),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "os": platform.system(),
        "distribution": dict(_pairs(_read("/etc/os-release"), "=")).get("PRETTY_NAME", "").strip('"'),
        "kernel": platform.release(),
        "governor": " ".join(sorted(governors)),
        "power_mode": _output("nvpmodel", "-q"),
        "python": platform.python_version(),
    }
    return {name: fact for name, fact in facts.items() if fact}


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What ``command`` prints; nothing where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.decode(errors="replace").strip().splitlines()) if done.returncode == 0 else ""


def _pairs(text: str, sign: str = ":") -> list[tuple[str, str]]:
    """``name: value`` a line, the last first, so that a dict of them keeps the first of a name."""
    parts = (line.partition(sign) for line in reversed(text.splitlines()))
    return [(name.strip(), value.strip()) for name, _, value in parts]
