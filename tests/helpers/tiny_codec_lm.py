"""Tiny codec language models that the tests share."""

import json
from pathlib import Path
from typing import Any

from tiny_speech import RECORDED_RATE, save_tiny_recordings, tiny_speech_codec

from latentlm.baselines.codec_lm import CodecLMConfig
from latentlm.catalog import KINDS
from latentlm.config import from_mapping
from latentlm.models.transformer import TransformerConfig

TRANSFORMER = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}


def tiny_codec_lm_config(**changes: Any) -> CodecLMConfig:
    """Bytes, and three codes out of 16 per frame, as `tiny_speech_codec` gives them."""
    settings = {
        "num_text_ids": 257,
        "num_codes": 16,
        "num_quantizers": 3,
        "autoregressive": TransformerConfig(**TRANSFORMER),
        "non_autoregressive": TransformerConfig(**TRANSFORMER),
    }
    return CodecLMConfig(**{**settings, **changes})


def tiny_codec_lm_recipe(folder: Path, **changes: Any) -> Any:
    """Transcribed and untranscribed recordings; codec and recordings are written into `folder`."""
    if not (folder / "codec").exists():
        tiny_speech_codec(sample_rate=RECORDED_RATE).save_pretrained(folder / "codec")
        save_tiny_recordings(folder / "recordings")
    recordings = {"path": str(folder / "recordings"), "sample_rate": RECORDED_RATE, "validation_ratio": 0.2}
    mapping: dict[str, Any] = {
        "kind": "codec_lm",
        "sources": {
            "spoken": {"speech": {"recordings": recordings, "templates": ["{text}{speech}"]}},
            "untranscribed": {"speech": {"recordings": recordings, "templates": ["{speech}"]}},
        },
        "speech_tokenizer": str(folder / "codec"),
        "max_length": 40,
        "model": {"group_size": 2, "autoregressive": TRANSFORMER, "non_autoregressive": TRANSFORMER},
        "optim": {"lr": 1.0e-3, "num_warmup_steps": 1},
        "trainer": {"num_steps": 2, "batch_size": 4, "tensorboard": False, "device": "cpu"},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = mapping
        for parent in parents:
            place = place[parent]
        place[last] = value
    return from_mapping(KINDS["codec_lm"].recipe_class, json.loads(json.dumps(mapping)))
