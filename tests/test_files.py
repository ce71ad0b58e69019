"""Files: what is told when they cannot be written."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from zoo.system.files import write_atomic
from zoo.train.run.checkpoint import save_checkpoint

resource = pytest.importorskip("resource")


def test_a_full_disk_is_told_with_the_path_and_keeps_the_old_file(tmp_path):
    (tmp_path / "old").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the disk is as good as full for larger files
    try:
        for write in (
            lambda path: write_atomic(path, b"." * 20_000),
            partial(save_checkpoint, {"w": torch.zeros(9000)}),
        ):
            with pytest.raises(OSError, match="File too large") as caught:
                write(tmp_path / "old")
            assert caught.value.filename == str(tmp_path / "old")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "old")]
