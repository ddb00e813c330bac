"""Reads VibeVoice's acoustic tokenizer, a later speech tokenizer by the paper's authors, into a `SpeechTokenizer`.

Its layers are ours under other names, and its (z + bias) · scaling is our latent statistics. Two spellings are read,
transformers' (`encoder.conv_layers.0.conv...`) and the authors' own (`encoder.downsample_layers.1.0.conv...`), with any
prefix, so that the weights of a whole model will do. Sizes are read off the shapes.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.speech.convnext import ConvNeXtConfig
from latentlm.tokenizers.speech.tokenizer import SpeechTokenizer, SpeechTokenizerConfig

# The model's other tokenizer has an encoder of the same form.
_HALF = re.compile(r"(?!.*semantic_tokenizer)(?:.*\.)?(encoder|decoder)\.(.+)")

# Layers are counted from the input of each half: `stem`, or 0 in the authors' spelling, comes before the strides.
_STEM = re.compile(r"stem\.conv\.conv\.(?P<inner>weight|bias)")
_RESAMPLE = re.compile(r"conv_layers\.(?P<before>\d+)\.(conv|convtr)\.(conv|convtr)\.(?P<inner>weight|bias)")
_AUTHORS_RESAMPLE = re.compile(r"(down|up)sample_layers\.(?P<layer>\d+)\.0\.\w+\.\w+\.(?P<inner>weight|bias)")
_BLOCK = re.compile(r"(stem|conv_layers\.(?P<before>\d+))\.stage\.(?P<block>\d+)\.(?P<inner>.+)")
_AUTHORS_BLOCK = re.compile(r"stages\.(?P<layer>\d+)\.(?P<block>\d+)\.(?P<inner>.+)")
_HEAD = re.compile(r"head\.conv\.(conv\.)?(?P<inner>weight|bias)")

_INSIDE_A_BLOCK = {
    "norm.weight": "mixer_norm.weight",
    "gamma": "mixer_scale",
    "ffn.linear1.weight": "expand.weight",
    "ffn.linear1.bias": "expand.bias",
    "ffn.linear2.weight": "contract.weight",
    "ffn.linear2.bias": "contract.bias",
    "ffn_gamma": "ffn_scale",
}
_STATISTICS = {
    "speech_scaling_factor": "statistics.scale",
    "latent_scaling_factor": "statistics.scale",
    "speech_bias_factor": "statistics.bias",
    "latent_bias_factor": "statistics.bias",
}


class _Place(NamedTuple):
    """Where a tensor belongs in one half."""

    layer: int | None
    """0 is the stem and its blocks, n the n-th stride and its blocks; None is the last convolution."""
    block: int | None
    """Within the layer; None is its convolution."""
    inner: str


def load_vibevoice_tokenizer(
    weights: Mapping[str, Tensor], *, sample_rate: int = 24_000, latent_sigma: float = 0.5
) -> SpeechTokenizer:
    """A `SpeechTokenizer` with the weights of a VibeVoice acoustic tokenizer, in evaluation mode.

    Args:
        weights: A state dict that holds both halves. Without the model's scaling and bias factors the latent statistics
            stay unmeasured.
        sample_rate: Hz, which no shape tells.
        latent_sigma: Their `fix_std`, which is not among the weights; transformers' `vae_std` is this over 0.8.

    Raises:
        ValueError: If the encoder or the decoder is missing, as in their streaming model, or does not fit the form.
    """
    halves: dict[str, dict[_Place, Tensor]] = {"encoder": {}, "decoder": {}}
    converted = {name: torch.tensor(torch.nan) for name in ("statistics.scale", "statistics.bias")}
    for name, weight in weights.items():
        if match := _HALF.fullmatch(name):
            halves[match[1]][_place(name, match[2])] = weight
        elif (last := name.rpartition(".")[2]) in _STATISTICS:
            converted[_STATISTICS[last]] = weight.float().reshape(())
    if empty := [half for half, tensors in halves.items() if not tensors]:
        raise ValueError(f"these weights hold no {' and no '.join(empty)} of an acoustic tokenizer")
    config = _config(halves["encoder"], sample_rate, latent_sigma)
    num_strides = len(config.strides)
    for half, tensors in halves.items():
        for place, weight in tensors.items():
            converted[f"{half}.{_our_name(half, place, num_strides)}"] = weight
    with torch.device("meta"):
        tokenizer = SpeechTokenizer(config)
    expected = {name: tensor.shape for name, tensor in tokenizer.state_dict().items()}
    if wrong := sorted(
        name for name in {*expected, *converted} if name not in converted or converted[name].shape != expected.get(name)
    ):
        raise ValueError(f"not the weights of a VibeVoice acoustic tokenizer: missing, left over or misshapen {wrong}")
    tokenizer.load_state_dict(converted, assign=True)
    return tokenizer.eval()


def _place(name: str, within_half: str) -> _Place:
    for pattern in (_STEM, _RESAMPLE, _AUTHORS_RESAMPLE, _BLOCK, _AUTHORS_BLOCK, _HEAD):
        if match := pattern.fullmatch(within_half):
            found = match.groupdict()
            if pattern is _HEAD:
                return _Place(None, None, found["inner"])
            before, layer = found.get("before"), found.get("layer")
            number = int(layer) if layer else int(before) + 1 if before else 0
            return _Place(number, int(found["block"]) if found.get("block") else None, found["inner"])
    raise ValueError(f"not the weights of a VibeVoice acoustic tokenizer: it has no {name}")


def _config(encoder: Mapping[_Place, Tensor], sample_rate: int, latent_sigma: float) -> SpeechTokenizerConfig:
    num_layers = 1 + max(place.layer or 0 for place in encoder)
    try:
        convolutions = [encoder[_Place(layer, None, "weight")] for layer in range(num_layers)]
        head = encoder[_Place(None, None, "weight")]
        first_linear = encoder[_Place(num_layers - 1, 0, "ffn.linear1.weight")]
    except KeyError as error:
        raise ValueError(f"not the weights of a VibeVoice acoustic tokenizer: missing {error.args[0]}") from error
    return SpeechTokenizerConfig(
        sample_rate=sample_rate,
        channels=tuple(weight.shape[0] for weight in convolutions),
        depths=tuple(len({place.block for place in encoder if place.layer == n} - {None}) for n in range(num_layers)),
        strides=tuple(weight.shape[2] // 2 for weight in convolutions[1:]),
        block=ConvNeXtConfig(
            kernel_size=convolutions[0].shape[2],
            expansion=first_linear.shape[0] // first_linear.shape[1],
            norm_eps=1e-5,
            layer_scale_init=1e-6,
        ),
        latent_dim=head.shape[0],
        bottleneck=BottleneckConfig(latent_sigma=latent_sigma),
    )


def _our_name(half: str, place: _Place, num_strides: int) -> str:
    """Ours counts stages from the waveform in both halves."""
    if place.layer is None:
        return f"last.{place.inner}"
    if place.block is not None:
        stage = place.layer if half == "encoder" else num_strides - place.layer
        inner = re.sub(r"mixer\.(conv\.)+", "mixer.", place.inner)
        return f"stage_{stage}.blocks.{place.block}.{_INSIDE_A_BLOCK.get(inner, inner)}"
    if place.layer == 0:
        return f"first.{place.inner}"
    if half == "encoder":
        return f"down_{place.layer}.{place.inner}"
    return f"up_{num_strides + 1 - place.layer}.{place.inner}"
