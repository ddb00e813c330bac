"""Tiny speech tokenizers of all designs, and sounds, that the tests share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlm.catalog import KINDS
from latentlm.config import from_mapping
from latentlm.data.audio import write_wav
from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.quantizer import QuantizerConfig
from latentlm.tokenizers.residual_quantizer import ResidualQuantizerConfig
from latentlm.tokenizers.speech import (
    SpectrumConfig,
    SpeechCodec,
    SpeechCodecConfig,
    SpeechTokenizer,
    SpeechTokenizerConfig,
)

# Thirty samples a latent in all designs. Strides, kernels, hop and frame do not divide each other evenly.
DESIGNS: dict[str, dict[str, Any]] = {
    "waveform": {"channels": (4, 6, 8), "depths": (1, 2, 1), "strides": (5, 6)},
    "spectral": {
        "spectrum": SpectrumConfig(fft_size=16, hop_length=5),
        "channels": (8, 6, 8),
        "depths": (1, 0, 1),
        "strides": (3, 2),
    },
    "harmonic": {
        "spectrum": SpectrumConfig(fft_size=16, hop_length=5, pitch_range=(10.0, 40.0)),
        "channels": (8, 6, 8),
        "depths": (1, 0, 1),
        "strides": (3, 2),
    },
}
HOP_LENGTH = 30

RECORDED_RATE = 2400
"""Hz, of tiny recordings: files of 240 Hz are refused."""


def sound(*shape: int, seed: int = 0) -> Tensor:
    """Noise in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_speech_tokenizer(design: str = "waveform", *, measured: bool = True, **changes: Any) -> SpeechTokenizer:
    """240 samples at 240 Hz are eight latents of three numbers; random weights, by default statistics measured."""
    settings = {"sample_rate": 240, "latent_dim": 3, "bottleneck": BottleneckConfig(latent_sigma=0.5)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = SpeechTokenizer(SpeechTokenizerConfig(**{**settings, **DESIGNS[design], **changes})).eval()
    if measured:
        tokenizer.measure_statistics([(sound(8, 240), torch.arange(8))])
    return tokenizer


def tiny_speech_codec(design: str = "waveform", *, filled: bool = True, **changes: Any) -> SpeechCodec:
    """240 samples at 240 Hz are eight frames of three codes out of 16; by default codes lie among what they encode."""
    quantizer = ResidualQuantizerConfig(
        num_quantizers=3, quantizer=QuantizerConfig(num_codes=16, code_dim=4, normalize=False)
    )
    settings = {"sample_rate": 240, "quantizer": quantizer}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = SpeechCodec(SpeechCodecConfig(**{**settings, **DESIGNS[design], **changes}))
    if filled:
        with torch.no_grad():
            codec.quantize(sound(16, 240, seed=7), seed=0, keys=torch.arange(16))
        codec.eval()
    return codec


def split_at(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive chunks of these sizes along time, as far as x reaches; what is left is the last one."""
    chunks = []
    for size in sizes:
        chunks.append(x[:, :size])
        x = x[:, size:]
    return [*chunks, x]


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors of a stream's state."""
    return [state] if isinstance(state, Tensor) else [tensor for part in state for tensor in tensors_of(part)]


def save_tiny_recordings(folder: Path, *, count: int = 12) -> Path:
    """Recordings of 60 to 137 samples of noise with transcripts, two speakers; the last has no transcript."""
    for number in range(count):
        stem = folder / f"speaker{number % 2}" / f"clip{number:02d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_wav(stem.with_suffix(".wav"), 0.5 * sound(60 + 7 * number, seed=number), RECORDED_RATE)
        if number < count - 1:
            stem.with_suffix(".txt").write_text(f"say {number}")
    return folder


def tiny_speech_recipe(folder: Path, **changes: Any) -> Any:
    """Text, speech and both; tokenizer and recordings are written into `folder`."""
    if not (folder / "speech_tokenizer").exists():
        tiny_speech_tokenizer(sample_rate=RECORDED_RATE).save_pretrained(folder / "speech_tokenizer")
        save_tiny_recordings(folder / "recordings")
    recordings = {"path": str(folder / "recordings"), "sample_rate": RECORDED_RATE, "validation_ratio": 0.2}
    mapping: dict[str, Any] = {
        "kind": "multimodal",
        "sources": {
            "spoken": {"speech": {"recordings": recordings, "templates": ["{text}{speech}", "{speech}"]}},
            "written": {"speech": {"recordings": recordings, "templates": ["{speech}{text}"]}},
        },
        "speech_tokenizer": str(folder / "speech_tokenizer"),
        "max_length": 48,
        "model": {
            "vocabulary": {"switch_tokens": True},
            "transformer": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24},
            "modalities": {"speech": {"latent_dim": 3, "head": {"num_layers": 1}}},
        },
        "speech_generation": {"cfg_scale": 2.0, "solver": {"num_inference_steps": 2}},
        "optim": {"lr": 1.0e-3, "num_warmup_steps": 1},
        "trainer": {"num_steps": 2, "batch_size": 4, "tensorboard": False, "device": "cpu"},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = mapping
        for parent in parents:
            place = place[parent]
        place[last] = value
    return from_mapping(KINDS["multimodal"].recipe_class, json.loads(json.dumps(mapping)))
