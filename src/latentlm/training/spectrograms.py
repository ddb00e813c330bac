"""Log-mel spectrograms for the log of a run: what a tokenizer lost can be seen before it is heard.

Shapes: N sounds, B originals, S samples.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from latentlm.nn.mel import mel_filter_bank, mel_spectrogram
from latentlm.pictures import picture_grid

_NUM_MELS = 80
_FRAMES_PER_SECOND = 100
_DECADES = 4.0
"""Of magnitude, from black to white: 80 dB."""


def spectrogram_grid(
    originals: Float[Tensor, "B S"], copies: list[Float[Tensor, "B S"]], *, sample_rate: int
) -> UInt8[Tensor, "3 height width"]:
    """Originals in a row, and a row below for each set of copies; low frequencies lie below.

    White is the loudest spot of the original, black 80 dB less; copies are drawn on the scale of their original.

    Args:
        originals: Waveforms.
        copies: What was made of them.
        sample_rate: Hz.
    """
    hop_length = max(1, sample_rate // _FRAMES_PER_SECOND)
    filters = mel_filter_bank(sample_rate, 4 * hop_length, _NUM_MELS, norm=None).to(originals.device)
    sounds = torch.cat([originals, *copies])
    mels = mel_spectrogram(sounds, filters, hop_length=hop_length)  # (N, mels, frames)
    floor = 10**-_DECADES
    loudest = mels[: len(originals)].amax(dim=(1, 2), keepdim=True).clamp_min(floor).repeat(1 + len(copies), 1, 1)
    decades = (mels / loudest).clamp_min(floor).log10()  # -4 … 0 for what is no louder than the original
    pixels = 2 * decades / _DECADES + 1  # -1 … 1
    return picture_grid(pixels.flip(1)[:, None], columns=len(originals))
