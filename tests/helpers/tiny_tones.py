"""Tiny recordings and what learns them: a second of training takes milliseconds."""

import math
from pathlib import Path
from typing import Any

import torch

from latentlm.data.audio import AudioDataConfig, write_wav
from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.quantizer import QuantizerConfig
from latentlm.tokenizers.residual_quantizer import ResidualQuantizerConfig
from latentlm.tokenizers.speech import SpectrumConfig, SpeechCodecConfig, SpeechTokenizerConfig

SAMPLE_RATE = 2000
"""Hz."""
# 50 latents a second.
_SIZES: dict[str, Any] = {
    "sample_rate": SAMPLE_RATE,
    "spectrum": SpectrumConfig(fft_size=40, hop_length=10),
    "channels": (32, 32),
    "depths": (1, 1),
    "strides": (4,),
}
TONE_TOKENIZER = SpeechTokenizerConfig(**_SIZES, latent_dim=4, bottleneck=BottleneckConfig(latent_sigma=0.3))
TONE_CODEC = SpeechCodecConfig(
    **_SIZES,
    quantizer=ResidualQuantizerConfig(
        num_quantizers=3, quantizer=QuantizerConfig(num_codes=16, code_dim=4, normalize=False), dropout_ratio=0.5
    ),
)


def write_tones(folder: Path, num_clips: int = 20) -> AudioDataConfig:
    """Clips of 0.1 to 0.3 s, tones that fade, in folders of two speakers; what reads them as crops of 0.2 s."""
    for number in range(num_clips):
        seconds = 0.1 + 0.2 * number / num_clips
        time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        tone = 0.5 * torch.sin(2 * math.pi * (200 + 30 * number) * time) * torch.exp(-5 * time)
        path = folder / f"speaker_{number % 2}" / f"{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, tone, SAMPLE_RATE)
    return AudioDataConfig(
        path=str(folder), format="audio_folder", sample_rate=SAMPLE_RATE, crop_seconds=0.2, validation_ratio=0.25
    )
