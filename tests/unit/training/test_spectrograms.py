"""Spectrogram pictures: what is loud is bright, low lies below, copies share the scale of their original."""

import math

import torch

from latentlm.training.spectrograms import spectrogram_grid


def tone(frequency: float) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(8000) / 8000)[None]


def tile(grid: torch.Tensor, row: int) -> torch.Tensor:
    """Grey pixels of the only picture in a row: 80 mels high, margin 4."""
    top = 4 + row * 84
    return grid[0, top : top + 80, 4:-4].float()


def test_a_low_tone_is_a_line_near_the_bottom() -> None:
    grid = spectrogram_grid(tone(200), [tone(3000)], sample_rate=8000)
    assert grid.shape == (3, 4 + 2 * 84, 4 + 101 + 4)
    low, high = (int(tile(grid, row).mean(dim=1).argmax()) for row in range(2))
    assert low > 60
    assert high < 20


def test_copies_are_as_bright_as_they_are_loud_and_silence_is_black() -> None:
    grid = spectrogram_grid(tone(1000), [tone(1000) / 10, torch.zeros(1, 8000)], sample_rate=8000)
    loud, quiet, silent = (tile(grid, row).max().item() for row in range(3))
    assert loud == 255
    assert abs(quiet - 255 * 3 / 4) < 2  # 20 of 80 dB less
    assert silent == 0


def test_silent_originals_have_a_picture_too() -> None:
    grid = spectrogram_grid(torch.zeros(2, 4000), [], sample_rate=8000)
    assert tile(grid, 0).max() <= 255
    assert not tile(grid, 0)[:, :40].any()
