"""Sounds that are made in a moment: tones for words, buzzes for voices, and strings of them."""

import torch
from torch import Tensor

from latentlm.evaluation.speech.recordings import Recordings

RATE = 8000
TONES = {"zero": 300.0, "one": 700.0, "two": 1500.0}
"""Frequency of each word, Hz."""
PITCHES = {"low": 90.0, "high": 210.0}
"""Of the two voices, Hz."""


def word(text: str, *, generator: torch.Generator, seconds: float = 0.25) -> Tensor:
    """A tone of the word's frequency, at a random level, phase and length."""
    length = int(RATE * seconds * (0.8 + 0.4 * torch.rand((), generator=generator)))
    phase, level = torch.rand(2, generator=generator)
    time = torch.arange(length) / RATE
    envelope = torch.sin(torch.pi * torch.arange(length) / length) ** 0.5
    return (0.1 + 0.4 * level) * envelope * torch.sin(2 * torch.pi * (TONES[text] * time + phase))


def words(count: int, *, seed: int) -> Recordings:
    """Single words, each tone as often as the others, by two speakers who sound alike."""
    generator = torch.Generator().manual_seed(seed)
    texts = [list(TONES)[index % len(TONES)] for index in range(count)]
    return Recordings(
        waveforms=[word(text, generator=generator) for text in texts],
        texts=texts,
        speakers=["ab"[index // len(TONES) % 2] for index in range(count)],
        sample_rate=RATE,
    )


def string(texts: list[str], *, generator: torch.Generator, gap: float = 0.2) -> tuple[Tensor, list[float]]:
    """Words one after the other with pauses, and where each word ends, seconds."""
    parts, ends, total = [], [], 0
    for text in texts:
        for part in (torch.zeros(round(gap * RATE)), word(text, generator=generator)):
            parts.append(part)
            total += len(part)
        ends.append(total / RATE)
    waveform = torch.cat(parts)
    return waveform + 1e-4 * torch.randn(len(waveform), generator=generator), ends


def voice(speaker: str, seconds: float, *, generator: torch.Generator) -> Tensor:
    """A buzz at the speaker's pitch through the speaker's filter, with a syllable's ups and downs."""
    time = torch.arange(int(RATE * seconds)) / RATE
    pitch = PITCHES[speaker] * (1 + 0.02 * torch.randn((), generator=generator))
    tilt = 1.0 if speaker == "low" else 0.3
    buzz = sum(torch.sin(2 * torch.pi * k * pitch * time) / k**tilt for k in range(1, int(3500 / pitch)))
    syllables = 0.6 + 0.4 * torch.sin(2 * torch.pi * 4 * time + 6 * torch.rand((), generator=generator))
    assert isinstance(buzz, Tensor)
    return 0.05 * syllables * buzz + 1e-3 * torch.randn(len(time), generator=generator)
