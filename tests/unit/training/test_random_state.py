"""The global generators: captured, restored, preserved, and seeded per rank."""

import random
from pathlib import Path

import numpy as np
import torch

from latentlm.storage import read_tensors, write_tensors
from latentlm.training.random_state import (
    capture_random_state,
    preserved_random_state,
    restore_random_state,
    seed_generators,
)


def draw() -> tuple[object, ...]:
    """An odd number of normals each, so that Python and NumPy hold a spare one back."""
    return (
        [random.gauss(0, 1) for _ in range(3)],
        np.random.standard_normal(3).tolist(),  # noqa: NPY002
        torch.randn(3).tolist(),
    )


def test_a_state_that_went_through_a_file_continues_all_generators(tmp_path: Path) -> None:
    seed_generators(3, 0)
    draw()
    state = capture_random_state()
    expected = [draw(), draw()]
    write_tensors(tmp_path / "random.safetensors", state)
    seed_generators(4, 0)
    restore_random_state(read_tensors(tmp_path / "random.safetensors"))
    assert [draw(), draw()] == expected


def test_what_is_drawn_in_a_preserved_context_was_never_drawn() -> None:
    seed_generators(3, 0)
    expected = draw()
    seed_generators(3, 0)
    with preserved_random_state():
        draw()
    assert draw() == expected


def test_ranks_and_seeds_draw_different_numbers() -> None:
    draws = []
    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        seed_generators(seed, rank)
        draws.append(draw())
    assert all(one != other for index, one in enumerate(draws) for other in draws[:index])
