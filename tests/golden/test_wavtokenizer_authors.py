"""WavTokenizer against numbers of its authors' code (github.com/jishengpeng/WavTokenizer, MIT), on tiny weights.

The weights are sines, so that only their names and shapes are stored: an encoder of 4 filters with strides 2, 4, 5 and
16 dimensions, 24 codes, a backbone of width 32 with two ConvNeXt blocks, transforms of 160 samples.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlm.evaluation.speech.codecs import Codec, open_codec
from latentlm.evaluation.speech.wavtokenizer import WavTokenizer
from latentlm.storage import write_tensors

pytest.importorskip("transformers")

VALUES = Path(__file__).parent / "data" / "wavtokenizer_values.json"
CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"


def sines(name: str, shape: list[int]) -> Tensor:
    """The weight of a name, as the authors' code was given it."""
    size = math.prod(shape)
    values = torch.sin(0.7 * torch.arange(size, dtype=torch.float64) + sum(map(ord, name)) % 97)
    values = values * (0.5 if size > 64 else 0.3)
    if len(shape) > 1:
        values = values / math.sqrt(max(1, size // shape[0])) * 2
    if name.endswith("weight_g"):
        values = values.abs() * 2 + 1.2
    is_scale = "norm" in name and name.endswith("weight") and "shift" not in name and len(shape) == 1
    if is_scale or name.endswith("norm.scale.weight"):
        values = values + 1
    return values.reshape(shape).float()


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return json.loads(VALUES.read_text())


@pytest.fixture(scope="module")
def weights(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: sines(name, shape) for name, shape in values["shapes"].items()}


def chirp() -> Tensor:
    time = torch.arange(800, dtype=torch.float64)
    return (torch.sin(0.002 * time * time) * torch.sin(0.011 * time)).float()[None]


def test_codes_and_sound_are_the_authors(values: dict[str, Any], weights: dict[str, Tensor]) -> None:
    model = WavTokenizer(weights)
    codes = model.encode(chirp())
    assert codes[0].tolist() == values["codes"]
    torch.testing.assert_close(model.decode(codes)[0, ::8], torch.tensor(values["waveform"]), atol=2e-5, rtol=0)


def test_a_checkpoint_is_a_codec(weights: dict[str, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("soxr")
    torch.save({"state_dict": {**weights, "discriminator.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "their.ckpt")
    write_tensors(tmp_path / "ours.safetensors", weights, {})
    codec, same = (open_codec(tmp_path / name) for name in ("their.ckpt", "ours.safetensors"))
    assert isinstance(codec, Codec)
    assert (codec.rate().frame_rate, codec.rate().bits_per_second) == (600, 600 * math.log2(24))
    clip = 0.5 * chirp()[:, :777]
    copy = codec.reconstruct(clip, 24000)
    assert copy.shape == clip.shape
    assert copy.abs().max() <= 1
    assert torch.equal(copy, same.reconstruct(clip, 24000))
    assert codec.reconstruct(clip, 16000).shape == clip.shape
    with pytest.raises(ValueError, match="1 to 1"):
        codec.reconstruct(clip, 24000, 2)


def test_other_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for changed, message in (
        ({name: tensor for name, tensor in weights.items() if name != "head.out.bias"}, "no weights of WavTokenizer"),
        ({**weights, CODEBOOK.replace("layers.0", "layers.1"): weights[CODEBOOK]}, "hold 2"),
        ({"a": torch.ones(1)}, "no weights of WavTokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            WavTokenizer(changed)
    (tmp_path / "pickle.ckpt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="no file of plain tensors"):
        open_codec(tmp_path / "pickle.ckpt")
