"""WavTokenizer (Ji et al. 2024) as a codec to compare with: one code a frame, with weights that the user brings.

    waveforms ─SEANet encoder (transformers' Encodec)▶ vectors ─nearest code▶ codes
      ─convolution, attention, ConvNeXt blocks▶ log magnitudes and phases ─inverse STFT▶ waveforms

Its authors publish checkpoints of a training framework; only their tensors are read. Every size is told by the tensors'
shapes, so that no config file is needed.

Shapes: B clips, S samples, N frames, D channels, F frequencies.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.foreign_weights import read_foreign_weights

SAMPLE_RATE = 24000
"""Of all released weights, Hz."""

_ENCODER, _CODEBOOK = "feature_extractor.encodec.encoder.model.", "feature_extractor.encodec.quantizer.vq.layers."
_GROUPS = 32
"""Of each group normalisation."""
_MAX_MAGNITUDE = 100.0
_BANDWIDTH = 0
"""Of the four normalisations that were trained alike, the one that the authors use."""


class WavTokenizer(nn.Module):
    """The network.

    Args:
        tensors: The authors' state dict; what belongs to training alone may be among them.

    Raises:
        ImportError: If transformers is missing; the message names the extra.
        ValueError: If tensors are missing, or there are several codebooks.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        try:
            self.encoder, self.hop_length = _encoder(_of(tensors, _ENCODER))
            codebooks = [name for name in tensors if name.startswith(_CODEBOOK) and name.endswith("._codebook.embed")]
            if len(codebooks) != 1:
                raise ValueError(f"WavTokenizer has one codebook, but these weights hold {len(codebooks)}")
            self.codebook: Tensor
            self.register_buffer("codebook", tensors[codebooks[0]].float())  # (codes, D)
            self.backbone = _Backbone(tensors)
            out_features, width = tensors["head.out.weight"].shape
            self.out = nn.Linear(width, out_features)
            self.backbone.load_state_dict(_of_backbone(tensors))
            self.out.load_state_dict(_of(tensors, "head.out."))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these are no weights of WavTokenizer: {error}") from error
        self.fft_size = self.out.out_features - 2
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(self.fft_size))
        self.requires_grad_(False).eval()

    def encode(self, waveforms: Float[Tensor, "B S"]) -> Int[Tensor, "B N"]:
        """The nearest code of every frame; S is a multiple of `hop_length`."""
        vectors = self.encoder(waveforms[:, None]).transpose(1, 2)
        return torch.cdist(vectors, self.codebook.expand(len(vectors), -1, -1)).argmin(dim=-1)

    def decode(self, codes: Int[Tensor, "B N"]) -> Float[Tensor, "B S"]:
        """N · hop_length samples."""
        log_magnitudes, phases = self.out(self.backbone(self.codebook[codes])).transpose(1, 2).chunk(2, dim=1)
        return self._inverse_stft(torch.polar(log_magnitudes.exp().clamp(max=_MAX_MAGNITUDE), phases))

    def _inverse_stft(self, spectrum: Tensor) -> Float[Tensor, "B S"]:
        """Of spectra [B, F, N] whose frames begin a hop apart, the first one before the sound."""
        num_frames, hop_length = spectrum.shape[2], self.hop_length
        frames = torch.fft.irfft(spectrum, self.fft_size, dim=1) * self.window[:, None]
        norm = self.window.square()[:, None].expand(1, -1, num_frames)
        length = (num_frames - 1) * hop_length + self.fft_size
        added, norms = (
            F.fold(of_frames, (1, length), (1, self.fft_size), stride=(1, hop_length))[:, 0, 0]
            for of_frames in (frames, norm)
        )
        start = (self.fft_size - hop_length) // 2
        kept = slice(start, start + num_frames * hop_length)
        return added[:, kept] / norms[:, kept]


class _Backbone(nn.Module):
    """Vocos' ConvNeXt blocks behind residual blocks and attention; children are called as in the weights."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        width, code_dim, kernel_size = tensors["backbone.embed.weight"].shape
        self.embed = nn.Conv1d(code_dim, width, kernel_size, padding=kernel_size // 2)
        residual = [_Residual(width) for _ in range(4)]
        self.pos_net = nn.Sequential(*residual[:2], _Attention(width), *residual[2:], _group_norm(width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        numbers = {name.split(".")[2] for name in tensors if name.startswith("backbone.convnext.")}
        hidden = tensors["backbone.convnext.0.pwconv1.weight"].shape[0]
        self.convnext = nn.Sequential(*(_ConvNeXt(width, hidden) for _ in numbers))
        self.final_layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, vectors: Float[Tensor, "B N C"]) -> Float[Tensor, "B N D"]:
        """What the inverse transform is read from."""
        x = self.pos_net(self.embed(vectors.transpose(1, 2))).transpose(1, 2)
        return self.final_layer_norm(self.convnext(self.norm(x)))


class _ConvNeXt(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        h = self.norm(self.dwconv(x.transpose(1, 2)).transpose(1, 2))
        return x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(h)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _group_norm(width), _group_norm(width)
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "B D N"]) -> Float[Tensor, "B D N"]:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class _Attention(nn.Module):
    """One head over all frames."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _group_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "B D N"]) -> Float[Tensor, "B D N"]:
        h = self.norm(x)
        q, k, v = (project(h).transpose(1, 2) for project in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


def _group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width, eps=1e-6)


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _of_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Normalisations that were chosen by bandwidth, as plain ones."""
    found = {}
    for name, tensor in _of(tensors, "backbone.").items():
        plain = name.replace("norm.scale.weight", "norm.weight").replace("norm.shift.weight", "norm.bias")
        found[plain] = tensor if plain == name else tensor[_BANDWIDTH]
    return found


def _encoder(tensors: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    """Encodec's encoder with these tensors, by the names of Encodec's authors; and samples per frame."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("this codec needs transformers: pip install 'latentlm[hf]'") from error
    first = tensors["0.conv.conv.weight_v"]
    # Every third layer from the fourth on halves the rate or more; its kernel is twice its stride.
    strides, number = [], 3
    while f"{number}.conv.conv.weight_v" in tensors and f"{number - 2}.shortcut.conv.conv.weight_v" in tensors:
        strides.append(tensors[f"{number}.conv.conv.weight_v"].shape[2] // 2)
        number += 3
    last = tensors[f"{number}.conv.conv.weight_v"]  # behind the LSTM and an activation
    config = transformers.EncodecConfig(
        sampling_rate=SAMPLE_RATE,
        hidden_size=last.shape[0],
        num_filters=first.shape[0],
        kernel_size=first.shape[2],
        last_kernel_size=last.shape[2],
        residual_kernel_size=tensors["1.block.1.conv.conv.weight_v"].shape[2],
        num_residual_layers=1,
        upsampling_ratios=strides[::-1],
        num_lstm_layers=sum("weight_ih" in name for name in tensors),
        norm_type="weight_norm",
        use_causal_conv=False,
        pad_mode="reflect",
        codebook_dim=last.shape[0],
        codebook_size=2,  # its own quantizer is not used
    )
    encoder = transformers.EncodecModel(config).encoder
    encoder.load_state_dict({_encodec_name(name): tensor for name, tensor in tensors.items()})
    return encoder, math.prod(strides)


def _encodec_name(name: str) -> str:
    """The name of Encodec's authors to that of transformers."""
    renamed = name.replace(".conv.conv.", ".conv.")
    for theirs, ours in (("weight_g", "original0"), ("weight_v", "original1")):
        renamed = renamed.replace(theirs, f"parametrizations.weight.{ours}")
    return f"layers.{renamed}"


def load_wavtokenizer(path: Path) -> WavTokenizer:
    """Read a checkpoint of the authors, or a safetensors file of its state dict.

    Raises:
        ImportError: If transformers is missing.
        ValueError: If the file holds anything but tensors, or other ones.
    """
    return WavTokenizer(read_foreign_weights(path))
