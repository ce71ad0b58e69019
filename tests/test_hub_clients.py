"""The tests over HTTP, with the oldest client of the Hub that pyproject.toml allows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OVER_HTTP = ("test_hub_server.py", "test_pull.py", "test_cache.py", "test_push.py")


@pytest.mark.slow
def test_the_oldest_client_that_is_allowed_does_it_too(tmp_path):
    project = (TESTS.parent / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r"huggingface_hub>=([\d.]+)", project)[1]
    install = ["-m", "pip", "install", "--quiet", "--target", str(tmp_path), f"huggingface_hub=={oldest}.0"]
    if subprocess.run([sys.executable, *install]).returncode:
        pytest.skip("needs the package index")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ask = "import huggingface_hub; print(huggingface_hub.__version__)"
    found = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(f"{oldest}.")
    files = [str(TESTS / name) for name in OVER_HTTP if (TESTS / name).exists()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
