"""Processes that compute together, as ``torchrun`` starts them, but forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch

IMPORTED = [
    "pytest",
    "hypothesis.strategies",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "zoo.train.pipeline",
    "zoo.cli.app",
]
PATIENCE = 240  # seconds


def forked(script: Path, processes: int) -> None:
    """Run ``script`` on some processes until all have ended; what they say is in the assertion if one fails."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(IMPORTED)
    store = torch.distributed.TCPStore(
        "localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE)
    )
    logs = [script.with_suffix(f".{rank}.log") for rank in range(processes)]
    shared = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    children = [
        forks.Process(target=_run, args=(script, logs[rank], shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
        child.kill()  # where it still runs
        child.join()
    said = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())
    assert [child.exitcode for child in children] == [0] * processes, said


def torchrun(script: Path, processes: int) -> None:
    """The same by ``torchrun`` itself."""
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0"]
    launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _run(script: Path, log: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    sys.argv = [str(script)]
    runpy.run_path(str(script), run_name="__main__")
