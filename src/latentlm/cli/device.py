"""The word `auto` of --device."""

import torch


def resolve_device(name: str) -> str:
    """A CUDA device for `auto` if there is one, else the CPU; any other name is the device's own.

    Raises:
        ValueError: If no such device exists here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch built without that backend
        raise ValueError(f"--device {name} cannot be used here: {error}") from error
    return name
