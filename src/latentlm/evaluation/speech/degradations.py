"""What may happen to a clip without changing what is said in it: noise, filters, clipping, bands, poor codecs.

A judge trained on clean recordings alone falls to chance at the first click or band of noise, on copies that people
understand. So judges are trained on degraded copies, and their accuracy is stated on degraded held-out clips too.

All functions take a batch at 8 kHz or more and draw from the generator that they are given; the level may change.

Shapes: B batch, S samples.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_Clips = Float[Tensor, "B S"]
Degradation = Callable[[_Clips, int, torch.Generator], _Clips]
"""Clips, sample rate in Hz and generator to clips."""

_FRAME_SECONDS = 0.032
"""Frames of the codec-like copies; as long as speech is stationary."""


def add_noise(clips: Float[Tensor, "B S"], sample_rate: int, generator: torch.Generator) -> Float[Tensor, "B S"]:
    """Coloured noise at 0 to 25 dB below the clip, and in every second clip a few clicks."""
    noise = torch.randn(clips.shape, generator=generator)
    noise = _shape_spectrum(noise, _random_curve(clips, sample_rate, generator, decibels=15.0))
    level = 10 ** (-_uniform(clips, 0.0, 25.0, generator) / 20)
    noisy = clips + noise * level * _rms(clips) / _rms(noise)
    clicks = (torch.rand(clips.shape, generator=generator) < 8 / sample_rate) * _uniform(clips, -1.0, 1.0, generator)
    clicking = torch.rand(len(clips), 1, generator=generator) < 0.5
    return noisy + clicking * clicks * noisy.abs().amax(dim=1, keepdim=True)


def equalize(clips: Float[Tensor, "B S"], sample_rate: int, generator: torch.Generator) -> Float[Tensor, "B S"]:
    """A smooth random filter of ± 12 dB: other microphones and rooms."""
    return _shape_spectrum(clips, _random_curve(clips, sample_rate, generator, decibels=12.0))


def limit_band(clips: Float[Tensor, "B S"], sample_rate: int, generator: torch.Generator) -> Float[Tensor, "B S"]:
    """Nothing below 50 to 400 Hz and nothing above 1.6 to 4 kHz."""
    frequencies = torch.fft.rfftfreq(clips.shape[1], 1 / sample_rate)
    lower, upper = _uniform(clips, 50.0, 400.0, generator), _uniform(clips, 1600.0, 4000.0, generator)
    return _shape_spectrum(clips, ((frequencies > lower) & (frequencies < upper)).float())


def clip_peaks(clips: Float[Tensor, "B S"], sample_rate: int, generator: torch.Generator) -> Float[Tensor, "B S"]:
    """Peaks cut at 5 to 50% of the largest."""
    limit = _uniform(clips, 0.05, 0.5, generator) * clips.abs().amax(dim=1, keepdim=True)
    return torch.minimum(torch.maximum(clips, -limit), limit)


def code_coarsely(clips: Float[Tensor, "B S"], sample_rate: int, generator: torch.Generator) -> Float[Tensor, "B S"]:
    """What a codec at a few hundred bits a second leaves: blurred magnitudes in coarse steps, phases half forgotten.

    The magnitudes of 32 ms frames are averaged over 2 to 8 neighbouring frequencies and 1 to 4 frames, rounded to
    steps of 2 to 8 dB, and put on phases that are moved by noise of 0.3 to 1.5 radians.
    """
    n_fft = round(_FRAME_SECONDS * sample_rate)
    hop, window = n_fft // 4, torch.hann_window(n_fft)
    spectrum = torch.stft(clips, n_fft, hop, window=window, pad_mode="constant", return_complex=True)  # (B, F, T)
    step, jitter = _uniform(clips, 2.0, 8.0, generator)[..., None], _uniform(clips, 0.3, 1.5, generator)[..., None]
    widths = torch.randint(1, 5, (len(clips), 2), generator=generator).tolist()
    blurred = torch.stack([_blur(one.abs(), 2 * f, t) for one, (f, t) in zip(spectrum, widths, strict=True)])
    decibels = 20 * blurred.clamp_min(1e-7).log10()
    magnitudes = 10 ** ((decibels / step).round() * step / 20)
    phases = spectrum.angle() + jitter * torch.randn(spectrum.shape, generator=generator)
    return torch.istft(torch.polar(magnitudes, phases), n_fft, hop, window=window, length=clips.shape[1])


def quantize_samples(clips: Float[Tensor, "B S"], sample_rate: int, generator: torch.Generator) -> Float[Tensor, "B S"]:
    """Samples of 3 to 6 bits on the mu-law (G.711's curve), as early telephone codecs have them."""
    top = clips.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
    levels = 2 ** _uniform(clips, 3.0, 6.0, generator).round() / 2
    x = clips / top
    compressed = x.sign() * torch.log1p(255 * x.abs()) / torch.log(torch.tensor(256.0))
    compressed = (compressed * levels).round() / levels
    return top * compressed.sign() * (256 ** compressed.abs() - 1) / 255


DEGRADATIONS: dict[str, Degradation] = {
    "noise": add_noise,
    "equalizer": equalize,
    "band": limit_band,
    "clipping": clip_peaks,
    "coarse codec": code_coarsely,
    "few bits": quantize_samples,
}
"""By name; the accuracy of a judge is stated for each."""


def degrade_randomly(
    clips: Float[Tensor, "B S"], sample_rate: int, generator: torch.Generator, *, clean_ratio: float = 0.3
) -> Float[Tensor, "B S"]:
    """Leave a share of the clips as they are, and send each other one through one or two degradations.

    Args:
        clips: At any level.
        sample_rate: Hz.
        generator: Of every draw.
        clean_ratio: Share that stays clean, in [0, 1].
    """
    names = list(DEGRADATIONS)
    result = clips.clone()
    for _ in range(2):
        chosen = torch.randint(len(names), (len(clips),), generator=generator)
        chosen[torch.rand(len(clips), generator=generator) < clean_ratio**0.5] = -1  # both rounds: clean_ratio
        for number, name in enumerate(names):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                result[rows] = DEGRADATIONS[name](result[rows], sample_rate, generator)
    return result


def add_noise_floor(clips: Float[Tensor, "B S"], generator: torch.Generator) -> Float[Tensor, "B S"]:
    """Noise at 30 to 80 dB below each clip, which nobody hears.

    Clips that were padded or joined have stretches of digital silence, as no recording and no synthesizer's output
    has: a judge that never heard anything else would take a faint hiss for speech.
    """
    level = 10 ** (-_uniform(clips, 30.0, 80.0, generator) / 20)
    return clips + level * _rms(clips) * torch.randn(clips.shape, generator=generator)


def change_speed(clip: Float[Tensor, " S"], max_change: float, generator: torch.Generator) -> Float[Tensor, "_"]:
    """Play a clip up to `max_change` (a ratio) faster or slower."""
    factor = 1 + max_change * (2 * torch.rand((), generator=generator).item() - 1)
    size = max(1, round(len(clip) * factor))
    return F.interpolate(clip[None, None], size=size, mode="linear", align_corners=False)[0, 0]


def _uniform(clips: Tensor, low: float, high: float, generator: torch.Generator) -> Float[Tensor, "B 1"]:
    return low + (high - low) * torch.rand(len(clips), 1, generator=generator)


def _rms(clips: Tensor) -> Float[Tensor, "B 1"]:
    return clips.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-8)


def _random_curve(clips: Tensor, sample_rate: int, generator: torch.Generator, *, decibels: float) -> Tensor:
    """A smooth gain per frequency: eight random points on a logarithmic axis, joined by lines."""
    points = (2 * torch.rand(len(clips), 8, generator=generator) - 1) * decibels
    frequencies = torch.fft.rfftfreq(clips.shape[1], 1 / sample_rate).clamp_min(50.0)
    place = (frequencies / 50).log2() / torch.tensor(sample_rate / 100).log2() * 7
    left = place.floor().long().clamp(0, 6)
    part = (place - left).clamp(0, 1)
    return 10 ** ((points[:, left] * (1 - part) + points[:, left + 1] * part) / 20)


def _shape_spectrum(clips: Tensor, gains: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(clips) * gains, clips.shape[1])


def _blur(magnitudes: Float[Tensor, "F T"], num_frequencies: int, num_frames: int) -> Float[Tensor, "F T"]:
    """Means over blocks, at the size of the input."""
    pooled = F.avg_pool2d(magnitudes[None], (num_frequencies, num_frames), ceil_mode=True)
    return F.interpolate(pooled[None], magnitudes.shape, mode="nearest")[0, 0]
