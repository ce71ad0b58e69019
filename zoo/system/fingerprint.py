"""What a device is, as far as it can be found out.

The runner takes this file to other devices, so it imports nothing of this package and is written for Python 3.9.
"""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import re
import subprocess
from typing import Any

# What decides which kernels a runtime takes, and so its last digits and its speed.
ISA = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "sme"),
)
CPUINFO = "/proc/cpuinfo"
# How macOS calls them, where it is otherwise: in machdep.cpu on Intel, in hw.optional.arm on Apple's own processors.
MACOS = {
    **{"sse4.2": "sse4_2", "avx1.0": "avx", "avx512vnni": "avx512_vnni"},
    **{"advsimd": "asimd", "feat_fp16": "asimdhp", "feat_dotprod": "asimddp", "feat_i8mm": "i8mm"},
    **{"feat_bf16": "bf16", "feat_sme": "sme"},
}
# Numbers of IsProcessorFeaturePresent.
WINDOWS = {38: "sse4_2", 39: "avx", 40: "avx2", 41: "avx512f", 43: "asimddp"}
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
LIMIT = "ONEDNN_MAX_CPU_ISA"
UNKNOWN = "unknown"


def fingerprint() -> dict[str, Any]:
    """What this device is; what cannot be found out is left out."""
    governors = {_read(path) for path in glob.glob("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}
    facts = {
        **arithmetic(),
        "board": _read("/proc/device-tree/model"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "os": platform.system(),
        "distribution": dict(_pairs(_read("/etc/os-release"), "=")).get("PRETTY_NAME", "").strip('"'),
        "kernel": platform.release(),
        "governor": " ".join(sorted(governors)),
        "power_mode": _output("nvpmodel", "-q"),
        "python": platform.python_version(),
    }
    return {name: fact for name, fact in facts.items() if fact}


def cpu_name() -> str:
    """The name of the processor; its architecture where the system does not say."""
    return (
        dict(_pairs(_read(CPUINFO))).get("model name")
        or dict(_pairs(_output("lscpu"))).get("Model name")
        or _output("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.processor()
        or platform.machine()
    )


def arithmetic() -> dict[str, str]:
    """What the last digits of a result depend on, and in int8 more than those.

    Returns:
        ``machine``: the architecture; ``isa``: which of :data:`ISA` there are; ``int8``: how products of int8 are added
        up (without VNNI, x86-64 adds two of them in 16 bits, which may saturate). What the system does not say is
        "unknown".
    """
    machine, flags = platform.machine(), isa()
    limit = os.environ.get(LIMIT)  # OpenVINO, and PyTorch, use no more than this
    int8 = _int8(machine.lower(), set(flags.split())) + (f" ({LIMIT}={limit})" if limit else "")
    return {"machine": machine, "isa": flags or UNKNOWN, "int8": int8}


def _int8(machine: str, flags: set[str]) -> str:
    if machine in ARM and flags:
        return f"Arm {'with' if flags & {'asimddp', 'i8mm'} else 'without'} dot product"
    if machine in X86 and flags and platform.system() != "Windows":  # it does not say whether there is VNNI
        return f"x86-64 {'with' if flags & {'avx512_vnni', 'avx_vnni'} else 'without'} VNNI"
    return UNKNOWN


def isa() -> str:
    """Which of :data:`ISA` this processor has, in that order; nothing where the system does not say."""
    if platform.system() == "Darwin":
        text = _output("sysctl", "machdep.cpu", "hw.optional").lower()
        words = re.findall(r"hw\.optional\.arm\.(\w+): 1", text)
        words += " ".join(re.findall(r"machdep\.cpu\.\w*features: ([^;]*)", text)).split()
        flags = {MACOS.get(word, word) for word in words}
    elif platform.system() == "Windows":
        kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - there is no such attribute elsewhere
        flags = {name for number, name in WINDOWS.items() if kernel.IsProcessorFeaturePresent(number)}
    else:
        cpu = dict(_pairs(_read(CPUINFO)))
        flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return " ".join(flag for flag in ISA if flag in flags)


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
