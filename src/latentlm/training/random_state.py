"""The states of all global random generators, as tensors: checkpoints store them, side work must not disturb them.

Noise that a loss depends on is keyed (`nn.keyed_noise`) and needs no state; dropout and others' code draw from these.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from latentlm.nn.keyed_noise import combine_keys


def seed_generators(seed: int, rank: int) -> None:
    """Start the global generators of Python, NumPy and PyTorch for one rank of a new run."""
    mixed = int(combine_keys(seed, rank)) & 0xFFFFFFFF
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - third-party code draws from the legacy global generator
    torch.manual_seed(mixed)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside, initial weights are drawn from the run's seed alone, and the caller's random numbers do not notice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def capture_random_state() -> dict[str, Tensor]:
    """The states of Python's, NumPy's and PyTorch's (CPU and every CUDA device) global generators."""
    version, internal, next_gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy_state, dict)
    twister = numpy_state["state"]
    state = {
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([] if next_gauss is None else [next_gauss], dtype=torch.float64),
        "numpy": torch.tensor([*twister["key"].tolist(), twister["pos"], numpy_state["has_gauss"]], dtype=torch.int64),
        "numpy_gauss": torch.tensor(numpy_state["gauss"], dtype=torch.float64),
        "torch_cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index, device_state in enumerate(torch.cuda.get_rng_state_all()):
            state[f"torch_cuda_{index}"] = device_state
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Put back what `capture_random_state` returned.

    Raises:
        KeyError: If a generator of this machine has no state in it.
    """
    version, *internal = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(internal), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = state["numpy_gauss"].item()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch_cpu"])
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_rng_state(state[f"torch_cuda_{index}"], index)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever is drawn within the context, the global generators continue afterwards as if it had not been."""
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
