"""What the trained judges look at: log-mel frames of a clip, at one level and in one range.

Shapes: S samples, M mel bands, T frames.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentlm.nn.mel import mel_filter_bank, mel_spectrogram

_HOP_SECONDS = 0.01
_WINDOW_SECONDS = 0.032
_RANGE = 3.5
"""Decades of magnitude below the loudest value that are seen: 70 dB."""


class LogMel(nn.Module):
    """Clips to frames whose mean is 0 and whose variance is 1, so that neither level nor room matters much.

    Args:
        sample_rate: Hz.
        num_mels: Bands M.
    """

    filters: Tensor

    def __init__(self, *, sample_rate: int, num_mels: int) -> None:
        super().__init__()
        self._hop_length = round(_HOP_SECONDS * sample_rate)
        n_fft = 2 * round(_WINDOW_SECONDS * sample_rate / 2)
        self.register_buffer("filters", mel_filter_bank(sample_rate, n_fft, num_mels, scale="htk"), persistent=False)

    def num_frames(self, num_samples: int) -> int:
        """T of a clip."""
        return num_samples // self._hop_length + 1

    def forward(self, waveforms: Float[Tensor, "B S"]) -> Float[Tensor, "B M T"]:
        """Frames every 10 ms. A silent clip gives zeros."""
        bands = mel_spectrogram(waveforms, self.filters, hop_length=self._hop_length)
        bands = bands[:, :, : self.num_frames(waveforms.shape[1])]  # short clips were lengthened
        logs = bands.clamp_min(1e-8).log10()
        logs = torch.maximum(logs, logs.amax(dim=(1, 2), keepdim=True) - _RANGE)
        mean, deviation = logs.mean(dim=(1, 2), keepdim=True), logs.std(dim=(1, 2), keepdim=True, correction=0)
        return (logs - mean) / deviation.clamp_min(1e-3)
