"""Weight files of other projects, read as tensors and nothing else."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from latentlm.storage import read_tensors

# Where training scripts put the state dict inside a checkpoint.
_STATE_DICT_KEYS = ("model", "state_dict", "module")


def read_foreign_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a state dict by its name, on the CPU.

    Args:
        path: A .safetensors file, or a PyTorch file (.pth, .pt, .bin), which is unpickled with `weights_only=True`:
            it can be wrong but cannot run code.

    Raises:
        ValueError: If the file is missing, unreadable, or holds anything that is no tensor in a state dict's place.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of plain tensors ({reason}); convert it to safetensors") from error
    for key in _STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name")
    return tensors
