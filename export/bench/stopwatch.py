"""Inside a contestant's process: load an engine, then call it for as long as is asked, and report the times.

What is timed is ``engine(images)``: float32 images on the CPU in, logits on the CPU out, the input checks of
:mod:`zoo.export.engines.interface` with it (some 5 µs for an image of CIFAR's size, 20 µs for 32), alike for all; where
the engine is on a GPU, the way there and back too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from zoo.export.bench.contestant import COMMAND
from zoo.system.errors import first_line

FIRST_CALLS = 3


def main() -> None:
    """Read a job, then orders, and answer each with a line of JSON, as :mod:`zoo.export.bench.contestant` has it."""
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print is no reply

    def reply(**facts: Any) -> None:
        print(json.dumps(facts), file=replies)

    try:
        job = json.loads(sys.stdin.readline())
        if job["cpus"]:
            os.sched_setaffinity(0, job["cpus"])
        import torch

        torch.set_num_threads(job["threads"])
        torch.backends.cudnn.allow_tf32 = False  # it is on by default, and no fp32 engine
        if job["kind"] == "package":
            _package(job)
            reply()
            return
        base, start = peak_mb(), time.perf_counter()
        with torch.inference_mode(), _engine(job) if job["kind"] == "engine" else _peer(job) as engine:
            shape, seeded = (3, job["image_size"], job["image_size"]), torch.Generator().manual_seed(0)
            images = {n: torch.rand(n, *shape, generator=seeded) for n in job["batches"]}
            engine(images[job["batches"][0]])
            ready, peaks = time.perf_counter() - start, []
            for x in images.values():  # the smallest batch first: what is compiled for a batch is compiled here
                for _ in range(FIRST_CALLS):
                    engine(x)
                peaks.append(peak_mb())
            reply(**facts_of(engine, job), base_mb=base, ready_s=round(ready, 3), peaks_mb=peaks)
            for line in sys.stdin:
                order = json.loads(line)
                reply(**timed(partial(engine, images[order["batch"]]), order["seconds"]))
    except Exception as error:
        reply(error={"kind": type(error).__name__, "message": first_line(error)})


def timed(call: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Milliseconds of each ``call`` within ``seconds``, once at least, after an untimed one that finds cold caches."""
    cpu = time.process_time()
    call()
    ms: list[float] = []
    end = time.perf_counter() + seconds
    while not ms or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        ms.append(1e3 * (time.perf_counter() - start))
    return {"ms": ms, "cpu_s": time.process_time() - cpu}


def peak_mb() -> float | None:
    """Most memory of this process that was resident so far, in 10^6 bytes; None where the system does not say.

    On Linux getrusage would count the parent's too: its peak survives the start of another program.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        return round(int(found[1]) * 1024 / 1e6, 1) if found else None
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)  # bytes on macOS


def _engine(job: dict[str, Any]) -> Any:
    from zoo.export.engines import backend

    return backend(job["engine"]).load_module().load(Path(job["file"]), threads=job["threads"], **job["options"])


def _peer(job: dict[str, Any]) -> Any:
    import torch

    from zoo.export.engines.twin import Twin

    run: Any = _model(job)
    if job["kind"] == "torch.compile":
        # Beyond its limit of recompilations it would run the model eagerly and not say so.
        torch._dynamo.config.recompile_limit = len(job["batches"]) + 8
        run = torch.compile(run, dynamic=False)
    elif job["kind"] == "aotinductor":
        packages = _packages(job)

        def run(x: torch.Tensor) -> torch.Tensor:
            return packages[len(x)](x)

    shape = (3, job["image_size"], job["image_size"])
    return Twin(run if job["device"] == "cpu" else lambda x: run(x.to(job["device"])).cpu(), shape=shape)


def _model(job: dict[str, Any]) -> Any:
    from zoo.weights.load import load

    return load(f"local-dir:{job['folder']}", local_files_only=True, device=job["device"])


def _packages(job: dict[str, Any]) -> dict[int, Any]:
    """Compile in yet another process, so that the compiler's memory is not taken for the engine's; then load."""
    import torch._inductor

    order = json.dumps({**job, "kind": "package"}) + "\n"
    answer = subprocess.run(COMMAND, input=order, stdout=subprocess.PIPE, text=True, check=False).stdout
    error = json.loads(answer)["error"] if answer.startswith('{"error"') else None
    if error or not answer:
        raise RuntimeError(error["message"] if error else "the compiler's process died")
    return {n: torch._inductor.aoti_load_package(str(_packaged(job, n))) for n in job["batches"]}


def _package(job: dict[str, Any]) -> None:
    """A package for each batch size, in the folder of the model."""
    import torch._inductor

    model = _model(job)
    with torch.no_grad():
        for n in job["batches"]:
            x = torch.zeros(n, 3, job["image_size"], job["image_size"], device=job["device"])
            program = torch.export.export(model, (x,))
            torch._inductor.aoti_compile_and_package(program, package_path=str(_packaged(job, n)))


def _packaged(job: dict[str, Any], batch: int) -> Path:
    return Path(job["folder"]) / f"batch-{batch}.pt2"


def facts_of(engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The runtime with its version, and the id of the device."""
    from zoo.system.device import cpu_id, gpu_id

    facts = engine.describe()
    if job["kind"] != "engine":
        facts = {**facts, "engine": job["kind"], "device": job["device"]}
    device = cpu_id(job["threads"])
    if facts["device"].startswith("cuda"):
        import torch

        device = gpu_id(torch.cuda.get_device_name())
    return {"runtime": f"{facts['engine']} {facts['version']}", "device": device}


if __name__ == "__main__":
    main()
