"""A tiny vocoder, a tiny model of its frames, and a recipe of both."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_models import randomise
from tiny_speech import RECORDED_RATE, save_tiny_recordings, sound

from latentlm.baselines.mel_ar import (
    MelAR,
    MelARConfig,
    MelARPipeline,
    MelARRecipe,
    MelVocoder,
    MelVocoderConfig,
)
from latentlm.config import from_mapping
from latentlm.tokenizers.text import ByteTokenizer

NUM_MELS = 6
FRAME_LENGTH = 30
"""Samples."""
TRANSFORMER = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64}


def tiny_vocoder(*, measured: bool = True) -> MelVocoder:
    """80 frames of six filters a second at 2,400 Hz; random weights, by default statistics measured."""
    config = from_mapping(
        MelVocoderConfig,
        {
            "sample_rate": RECORDED_RATE,
            "latent_dim": NUM_MELS,
            "mel": {"window_length": 64, "min_frequency": 50.0},
            "spectrum": {"fft_size": 32, "hop_length": 10},
            "channels": [8, 8],
            "depths": [1, 1],
            "strides": [3],
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vocoder = MelVocoder(config).eval()
    if measured:
        vocoder.measure_statistics([(0.5 * sound(8, 600), torch.arange(8))])
    return vocoder


def tiny_config(*, reduction_factor: int = 2, **changes: Any) -> MelARConfig:
    return from_mapping(
        MelARConfig,
        {
            "vocabulary": {"num_text_ids": 257, "switch_tokens": True},
            "transformer": TRANSFORMER,
            "num_mels": NUM_MELS,
            "reduction_factor": reduction_factor,
            "post_net": {"num_layers": 3, "channels": 8, "kernel_size": 3},
            **changes,
        },
    )


def tiny_model(*, reduction_factor: int = 2, **changes: Any) -> MelAR:
    """Random weights, the post-net's last layer among them."""
    return randomise(MelAR(tiny_config(reduction_factor=reduction_factor, **changes))).eval()


def tiny_pipeline(*, reduction_factor: int = 2) -> MelARPipeline:
    return MelARPipeline(
        tiny_model(reduction_factor=reduction_factor), {"speech": tiny_vocoder(), "text": ByteTokenizer()}
    )


def tiny_recipe(folder: Path, **changes: Any) -> MelARRecipe:
    """Transcribed and untranscribed recordings; vocoder and recordings are written into `folder`."""
    if not (folder / "vocoder").exists():
        tiny_vocoder().save_pretrained(folder / "vocoder")
        save_tiny_recordings(folder / "recordings")
    recordings = {"path": str(folder / "recordings"), "sample_rate": RECORDED_RATE, "validation_ratio": 0.2}
    mapping: dict[str, Any] = {
        "kind": "mel_ar",
        "sources": {
            "spoken": {"speech": {"recordings": recordings, "templates": ["{text}{speech}"]}},
            "untranscribed": {"speech": {"recordings": recordings, "templates": ["{speech}"]}},
        },
        "vocoder": str(folder / "vocoder"),
        "max_length": 48,
        "model": {
            "num_mels": NUM_MELS,
            "reduction_factor": 2,
            "transformer": {**TRANSFORMER, "num_layers": 1},
            "post_net": {"num_layers": 2, "channels": 8, "kernel_size": 3},
            **changes.pop("model", {}),
        },
        "optim": {"lr": 1.0e-3, "num_warmup_steps": 1},
        "trainer": {
            "num_steps": 2,
            "batch_size": 4,
            "tensorboard": False,
            "device": "cpu",
            **changes.pop("trainer", {}),
        },
        **changes,
    }
    return from_mapping(MelARRecipe, json.loads(json.dumps(mapping)))
