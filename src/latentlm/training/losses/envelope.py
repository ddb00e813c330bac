"""How far the spectra that a decoder's frames mean are from those of the recordings.

Sound that is made of pulses and noise has phases of its own, and noise that is another draw: of the difference between
its spectrogram and the recording's much says nothing about the decoder. What a frame is expected to be has neither.

Shapes: B clips, S samples, T frames, F frequencies, M mel bands.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentlm.nn.mel import mel_filter_bank

_NUM_MELS = 40
_FLOOR = 1e-7
"""Of the power in a band, against full scale: -70 dB."""


class EnvelopeDistance(nn.Module):
    """L1 between log mel magnitudes, nats, in 40 bands of one window.

    Args:
        window: Of the frames, of mean square 1.
        sample_rate: Hz.
        hop_length: Samples from frame to frame; frame t begins at sample t * hop_length.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, window: Float[Tensor, "fft_size"], *, sample_rate: int, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        self.register_buffer("window", window, persistent=False)
        filters = mel_filter_bank(sample_rate, len(window), _NUM_MELS, norm=None)
        filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1.0)  # means, and narrow ones no louder
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, power: Float[Tensor, "B T F"], waveforms: Float[Tensor, "B S"]) -> Float[Tensor, "B"]:
        """Mean over bands and over the frames that lie within the recording; 0 if none does.

        Args:
            power: Expected of each frame, with the orthonormal transform.
            waveforms: The recordings.
        """
        if waveforms.shape[1] < len(self.window):
            return power.new_zeros(len(power))
        with torch.autocast(power.device.type, enabled=False):  # sums over bands in float32
            frames = waveforms.float().unfold(1, len(self.window), self.hop_length)[:, : power.shape[1]] * self.window
            real = torch.fft.rfft(frames, norm="ortho").abs().square()
            return (self._levels(power[:, : real.shape[1]]) - self._levels(real)).abs().mean(dim=(1, 2))

    def _levels(self, power: Float[Tensor, "B T F"]) -> Float[Tensor, "B T M"]:
        return 0.5 * (power.float() @ self.filters.T + _FLOOR).log()
