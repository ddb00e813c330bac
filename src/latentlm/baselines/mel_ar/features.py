"""Log-mel frames, and groups of them: what MELLE predicts (Meng et al. 2024, arXiv 2407.08551, Appendix A.2).

    waveforms [B, S] ─zeros to whole frames▶ ─STFT, mel filters, log10▶ frames [B, N, M]
    frames [B, r · G, M] ─r in a row▶ groups [B, G, r · M]: one step of the model each (its Eq. 2)

Frame t is centred on sample t · hop_length. Nothing here is learned.

Shapes: B clips, S samples, N = ceil(S / hop_length) frames, M num_mels, r reduction factor, G groups.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.nn.mel import mel_filter_bank, mel_spectrogram


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """How filters look at the sound; their number and hop are the vocoder's. MELLE: 1,024 samples at 16 kHz."""

    window_length: int = 1024
    """Samples per frame, even."""
    min_frequency: float = 80.0
    """Lower edge of the first filter, Hz."""
    max_frequency: float | None = None
    """Upper edge of the last filter, Hz; null: half the sample rate. MELLE: 7,600 of 8,000."""
    floor: float = 1e-5
    """Smaller magnitudes count as this one: silence has a logarithm."""

    def __post_init__(self) -> None:
        if self.window_length < 2 or self.window_length % 2:
            raise ValueError(f"window_length is {self.window_length}; it must be even and at least 2")
        if self.floor <= 0:
            raise ValueError(f"floor is {self.floor}, but the logarithm needs something above zero")


class LogMel(nn.Module):
    """Waveforms to log10 mel magnitudes; the filters are constants that no checkpoint holds.

    Args:
        config: The filters.
        num_mels: M, their number.
        sample_rate: Hz.
        hop_length: Samples from frame to frame.

    Raises:
        ValueError: If the filters do not fit the sample rate.
    """

    filters: Tensor

    def __init__(self, config: MelConfig, *, num_mels: int, sample_rate: int, hop_length: int) -> None:
        super().__init__()
        self.config = config
        self.hop_length = hop_length
        with torch.device("cpu"):  # constants have values, also where a model is built on the meta device
            filters = mel_filter_bank(
                sample_rate, config.window_length, num_mels, config.min_frequency, config.max_frequency
            )
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveforms: Float[Tensor, "B S"]) -> Float[Tensor, "B N M"]:
        """Frames of clips in [-1, 1], float32; a frame that has begun is completed by zeros."""
        num_frames = -(-waveforms.shape[1] // self.hop_length)
        missing = num_frames * self.hop_length - waveforms.shape[1]
        mels = mel_spectrogram(F.pad(waveforms, (0, missing)), self.filters, hop_length=self.hop_length)
        # A centred transform gives one frame more, of which only half would be sound.
        return mels[:, :, :num_frames].clamp_min(self.config.floor).log10().transpose(1, 2)


def group_frames(frames: Float[Tensor, "*batch N M"], reduction_factor: int) -> Float[Tensor, "*batch G grouped"]:
    """r frames side by side in each group.

    Raises:
        ValueError: If the frames do not fill their groups.
    """
    num_frames = frames.shape[-2]
    if num_frames % reduction_factor:
        raise ValueError(f"{num_frames} frames cannot be grouped by {reduction_factor}: some would be left over")
    return frames.unflatten(-2, (num_frames // reduction_factor, reduction_factor)).flatten(-2)


def ungroup_frames(groups: Float[Tensor, "*batch G grouped"], reduction_factor: int) -> Float[Tensor, "*batch N M"]:
    """The inverse of `group_frames`."""
    return groups.unflatten(-1, (reduction_factor, -1)).flatten(-3, -2)


def complete_groups(frames: Float[Tensor, "N M"], reduction_factor: int) -> Float[Tensor, "G grouped"]:
    """Groups of an utterance; its last frame is said again where it leaves a group unfinished."""
    missing = -len(frames) % reduction_factor
    return group_frames(torch.cat([frames, frames[-1:].expand(missing, -1)]), reduction_factor)


def newest_groups(frames: Float[Tensor, "N M"], reduction_factor: int) -> Float[Tensor, "G grouped"]:
    """Groups of a voice, to be gone on from: where frames are left over, they are its oldest."""
    return group_frames(frames[len(frames) % reduction_factor :], reduction_factor)
