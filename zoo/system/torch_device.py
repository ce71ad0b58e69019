"""A device for PyTorch, refused in a sentence where it cannot be used here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.system.errors import UsageError, WrongDevice, first_line

if TYPE_CHECKING:
    import torch


def torch_device(device: str | torch.device) -> torch.device:
    """The device called ``device``, such as ``cpu`` or ``cuda:1``.

    Raises:
        UsageError: it is no device.
        WrongDevice: torch cannot use it here.
    """
    import torch

    try:
        where = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"'{device}' is not a device: use cpu, cuda, cuda:1 or mps") from None
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise WrongDevice(f"torch finds {torch.cuda.device_count()} CUDA devices, but not '{device}': use cpu")
    try:
        torch.empty(0, device=where)
    except Exception as error:  # of every kind of device another
        raise WrongDevice(f"torch cannot use '{device}' here ({first_line(error)}): use cpu") from None
    return where
