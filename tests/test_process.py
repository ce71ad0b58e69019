"""The process of the command line: streams that are closed, full or left, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

ZOO = f"'{sys.executable}' -m zoo"
LOST = "zoo: error: the output could not be written: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (f"{ZOO} list >&-", 0, ""),
        (f"{ZOO} list <&- >&- 2>&-", 0, ""),
        (f"{ZOO} list >/dev/full", 1, LOST),
        (f"{ZOO} list --json >/dev/full", 1, LOST),
        (f"{ZOO} --help >/dev/full", 1, LOST),
        (f"{ZOO} lst 2>/dev/full", 2, ""),
        (f"{ZOO} lst 2>&-", 2, ""),
        (f"({ZOO} list --json; echo $? >&2) | head -c 1", 0, "1\n"),
    ],
)
def test_streams_that_are_closed_full_or_left_end_quietly_or_with_a_sentence(command, code, said, unbuffered):
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}
    )
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("module", ["typer", "zoo.datasets", "numpy", "torch._C", "torch.nn", "zoo.models"])
def test_ctrl_c_during_an_import_exits_with_130(module, tmp_path):
    """The interpreter lists the modules that it has imported, so the signal comes during the imports that follow."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "zoo", "eval", "trades-s3", "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored in the background
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            process.send_signal(signal.SIGINT)
            break
    else:
        pytest.fail(f"{module} was not imported")
    out, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, out, said) == (130, "", ["zoo: interrupted"])
