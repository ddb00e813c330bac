"""Random changes of recordings in training. Each is a function of a key, so that a resumed run makes the same ones.

Shapes: B batch, S samples, F frequencies, P control points of an equaliser.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.data.audio.voice_shift import shift_voice
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform

_STREAM = 0xA063
_NOISE_STREAM = 0xA064
_EQUALIZER_STREAM = 0xA065
_TRANSITION_RATIO = 0.1
"""Width of a filter's edge against its cutoff."""
_NUM_EQUALIZER_POINTS = 8
"""Of a random frequency response, from 0 Hz to half the sample rate: about an octave apart, where speech is."""


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    gain_db: float = 0.0
    """Levels change by up to this, either way; a gain that would clip is reduced to what fits."""
    flip_polarity: bool = False
    """Turn half of the recordings upside down, which nobody hears."""
    noise_ratio: float = 0.0
    """Share of examples that get white noise."""
    min_snr_db: float = 10.0
    """The strongest noise, against the level of the recording."""
    max_snr_db: float = 40.0
    """The faintest."""
    band_limit_ratio: float = 0.0
    """Share of examples that lose their high frequencies, as over a telephone."""
    min_cutoff_hz: float = 3000.0
    """The lowest cutoff; the highest is half the sample rate."""
    equalizer_ratio: float = 0.0
    """Share of examples with another frequency response, as of another microphone or room. Where recordings come from
    few of them, a tokenizer learns their colour by heart, and gives it to every voice."""
    max_equalizer_db: float = 10.0
    """How far that response goes from flat, either way."""
    voice_shift_ratio: float = 0.0
    """Share of examples that become another voice (`voice_shift.py`)."""
    max_pitch_semitones: float = 4.0
    """How far the pitch of those moves, either way."""
    max_formant_semitones: float = 3.0
    """How far their formants move, either way, independently."""

    def __post_init__(self) -> None:
        for name in ("noise_ratio", "band_limit_ratio", "equalizer_ratio", "voice_shift_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be in [0, 1]")
        for name in ("gain_db", "max_equalizer_db"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must not be negative")
        if self.min_snr_db > self.max_snr_db:
            raise ValueError(f"min_snr_db={self.min_snr_db} is above max_snr_db={self.max_snr_db}")
        if self.min_cutoff_hz <= 0:
            raise ValueError(f"min_cutoff_hz is {self.min_cutoff_hz}, must be positive")
        for name in ("max_pitch_semitones", "max_formant_semitones"):
            if not 0 <= getattr(self, name) <= 12:
                raise ValueError(f"{name} is {getattr(self, name)}, must be in [0, 12]: an octave is the most")

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to do at all."""
        ratios = (self.noise_ratio, self.band_limit_ratio, self.equalizer_ratio, self.voice_shift_ratio)
        return self.gain_db > 0 or self.flip_polarity or any(ratio > 0 for ratio in ratios)


def augment_waveforms(
    waveforms: Float[Tensor, "B S"],
    num_samples: Int[Tensor, "B"],
    keys: Int[Tensor, "B"],
    config: AugmentationConfig,
    *,
    sample_rate: int,
) -> Float[Tensor, "B S"]:
    """Change each recording as its key says; padding stays zero, lengths stay.

    Args:
        waveforms: In [-1, 1], on the CPU.
        num_samples: How much of each is sound; the rest is padding.
        keys: For example the hash of seed, epoch and record.
        config: What may happen.
        sample_rate: Hz.

    Returns:
        In [-1, 1].
    """
    inside = torch.arange(waveforms.shape[1]) < num_samples[:, None]  # (B, S)
    # A column of its own for every decision: switching one change on does not alter the others.
    draws = keyed_uniform(0, keys, (9,), stream=_STREAM)  # (B, 9)
    if config.voice_shift_ratio > 0:
        waveforms = _shift_voices(waveforms, num_samples, draws[:, 0:3], config, sample_rate)
    if config.equalizer_ratio > 0:
        response = keyed_uniform(0, keys, (1 + _NUM_EQUALIZER_POINTS,), stream=_EQUALIZER_STREAM)
        gains_db = config.max_equalizer_db * (2 * response[:, 1:] - 1)  # (B, P)
        waveforms = torch.where(
            response[:, :1] < config.equalizer_ratio, equalize(waveforms, gains_db, sample_rate), waveforms
        )
    if config.band_limit_ratio > 0:
        limited = low_pass(waveforms, config.min_cutoff_hz, draws[:, 4], sample_rate)
        waveforms = torch.where(draws[:, 3:4] < config.band_limit_ratio, limited, waveforms)
    if config.noise_ratio > 0:
        snr_db = config.min_snr_db + (config.max_snr_db - config.min_snr_db) * draws[:, 6:7]
        power = waveforms.square().sum(dim=1, keepdim=True) / num_samples.clamp(min=1)[:, None]
        noise = keyed_normal(0, keys, (waveforms.shape[1],), stream=_NOISE_STREAM)
        noisy = waveforms + noise * (power * 10 ** (-snr_db / 10)).sqrt()
        waveforms = torch.where(draws[:, 5:6] < config.noise_ratio, noisy, waveforms)
    waveforms = waveforms * inside
    if config.gain_db > 0:
        waveforms = waveforms * 10 ** (config.gain_db * (2 * draws[:, 7:8] - 1) / 20)
    if config.flip_polarity:
        waveforms = torch.where(draws[:, 8:9] < 0.5, -waveforms, waveforms)
    return waveforms / waveforms.abs().amax(dim=1, keepdim=True).clamp(min=1.0)


def equalize(waveforms: Float[Tensor, "B S"], gains_db: Float[Tensor, "B P"], sample_rate: int) -> Float[Tensor, "B S"]:
    """Give each recording another frequency response, in the frequency domain, and the level that it had.

    Args:
        waveforms: Any length.
        gains_db: At points equally far apart on the mel scale, from 0 Hz to half the sample rate; between them decibels
            change linearly over mels.
        sample_rate: Hz.
    """
    length = waveforms.shape[1]
    if length == 0:
        return waveforms
    num_points = gains_db.shape[1]
    mels = torch.log1p(torch.fft.rfftfreq(length, 1 / sample_rate) / 700)  # (F,), O'Shaughnessy's scale
    positions = mels / math.log1p(sample_rate / 2 / 700) * (num_points - 1)
    below = positions.long().clamp(max=num_points - 2)
    weights = positions - below
    response_db = gains_db[:, below] * (1 - weights) + gains_db[:, below + 1] * weights  # (B, F)
    equalized = torch.fft.irfft(torch.fft.rfft(waveforms) * 10 ** (response_db / 20), n=length)
    levels, changed = (signal.square().sum(dim=1, keepdim=True).sqrt() for signal in (waveforms, equalized))
    return equalized * torch.where(changed > 0, levels / changed, 1.0)


def low_pass(
    waveforms: Float[Tensor, "B S"], min_cutoff_hz: float, draws: Float[Tensor, "B"], sample_rate: int
) -> Float[Tensor, "B S"]:
    """Take away what lies above a cutoff, by a raised-cosine edge in the frequency domain.

    Args:
        waveforms: Any length.
        min_cutoff_hz: The cutoff at a draw of 0; at 1 it is half the sample rate. Between, octaves are equally likely.
        draws: In (0, 1).
        sample_rate: Hz.
    """
    length = waveforms.shape[1]
    if length == 0:
        return waveforms
    highest = sample_rate / 2
    lowest = min(min_cutoff_hz, highest)
    cutoffs = (lowest * (highest / lowest) ** draws)[:, None]  # (B, 1)
    frequencies = torch.fft.rfftfreq(length, 1 / sample_rate)  # (F,)
    beyond = ((frequencies - cutoffs) / (_TRANSITION_RATIO * cutoffs)).clamp(0, 1)  # (B, F)
    gain = 0.5 * (1 + torch.cos(torch.pi * beyond))
    return torch.fft.irfft(torch.fft.rfft(waveforms) * gain, n=length)


def _shift_voices(
    waveforms: Tensor, num_samples: Tensor, draws: Tensor, config: AugmentationConfig, sample_rate: int
) -> Tensor:
    shifted = waveforms.clone()
    for row, (chosen, pitch, formant) in enumerate(draws.double().tolist()):
        length = int(num_samples[row])
        if chosen >= config.voice_shift_ratio or length == 0:
            continue
        pitch_ratio, formant_ratio = (
            2 ** (semitones * (2 * draw - 1) / 12)
            for semitones, draw in ((config.max_pitch_semitones, pitch), (config.max_formant_semitones, formant))
        )
        shifted[row, :length] = shift_voice(
            waveforms[row, :length], sample_rate, pitch_ratio=pitch_ratio, formant_ratio=formant_ratio
        )
    return shifted
