"""A small dual encoder of pictures and captions: the judge of caption consistency.

    picture ─convolutions─▶ feature ┐ near each other for a pair (symmetric InfoNCE), far for pictures and the captions
    caption ─convolutions─▶ feature ┘ of others

It is trained on training pairs alone, once, and kept on disk under a hash of its config and of every pixel and caption.
It must never be a loss, a reward or a selector of anything that it scores: not of weights, checkpoints, guidance or
temperature, nor of the best of several samples. Whatever was chosen by a judge is judged by it no more.

Shapes: N pictures, C channels, H height, W width, M captions, L bytes of a caption, D features, E text width.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from latentlm.config import to_mapping
from latentlm.data.images import to_unit_range
from latentlm.evaluation.classifier import augment
from latentlm.pretrained import load_exactly
from latentlm.storage import publish_folder, read_tensors, verify_folder, write_json, write_tensors
from latentlm.tokenizers.text import ByteTokenizer

FORMAT_VERSION = 1
"""Part of the cached folder's name: raised whenever code here changes what the same config trains."""

_SIDE = 32
"""Larger pictures are averaged down to this side: the judge's cost does not grow with the picture."""
_POOLED_SIDE = 4
"""Side of the feature map that the linear layer sees: places matter ("left arrow")."""
_MAX_LOGIT_SCALE = 100.0
"""Radford et al. 2021 clip the inverse temperature here."""
_CHUNK = 512
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """The judge's size and training; one setting for all models that are compared."""

    num_features: int = 128
    width: int = 24
    """Channels of the first picture layer; doubled twice on the way to the features."""
    text_width: int = 96
    num_text_layers: int = 3
    max_caption_bytes: int = 128
    num_steps: int = 900
    """Of `batch_size` pairs each: minutes on one core."""
    batch_size: int = 128
    """Pairs per step, all of different captions; each picture's negatives are the other captions."""
    lr: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    initial_temperature: float = 0.07
    """Of the InfoNCE loss; learned from there (Radford et al. 2021)."""
    max_shift: int = 2
    """Augmentation: pictures are moved by up to this many pixels along each axis, the edge pixels repeated."""
    pixel_noise: float = 0.1
    """Augmentation: standard deviation of noise added to pixels in [-1, 1]."""
    seed: int = 0


class PictureEncoder(nn.Module):
    """Convolutions at three resolutions, a residual one at each, and a linear layer that still sees places."""

    def __init__(self, config: DualEncoderConfig, *, num_channels: int) -> None:
        super().__init__()
        width = config.width
        widths = (width, 2 * width, 4 * width)
        self.downsampling = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            for inputs, outputs in zip((num_channels, *widths[:-1]), widths, strict=True)
        )
        self.residual = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, size), nn.GELU(), nn.Conv2d(size, size, 3, padding=1)) for size in widths
        )
        self.norm = nn.GroupNorm(8, widths[-1])
        self.dropout = nn.Dropout(config.dropout)
        self.out_proj = nn.Linear(widths[-1] * _POOLED_SIDE**2, config.num_features)

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Features of pictures in [-1, 1], of any length."""
        x = F.adaptive_avg_pool2d(images, (min(_SIDE, images.shape[-2]), min(_SIDE, images.shape[-1])))
        for downsample, residual in zip(self.downsampling, self.residual, strict=True):
            x = downsample(x)
            x = x + residual(x)
        x = F.adaptive_avg_pool2d(F.gelu(self.norm(x)), _POOLED_SIDE).flatten(1)
        return self.out_proj(self.dropout(x))


class CaptionEncoder(nn.Module):
    """Residual convolutions over the bytes of a caption, and the mean over its bytes: order within words and phrases
    is seen, their place in the caption is not."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        width = config.text_width
        self.embedding = nn.Embedding(ByteTokenizer.num_ids, width, padding_idx=ByteTokenizer.eos_id)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.num_text_layers))
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(config.num_text_layers))
        self.out_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.out_proj = nn.Linear(width, config.num_features)

    def forward(self, caption_bytes: Int[Tensor, "M L"]) -> Float[Tensor, "M D"]:
        """Features of captions, of any length; the id that ends texts pads them."""
        valid = (caption_bytes != ByteTokenizer.eos_id)[..., None]  # (M, L, 1)
        x = self.embedding(caption_bytes)  # (M, L, E)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            # Zeros beyond the end, as a convolution has them beyond the edge: padding changes no feature.
            update = convolution((F.gelu(norm(x)) * valid).mT).mT
            x = (x + update) * valid
        mean = (self.out_norm(x) * valid).sum(dim=1) / valid.sum(dim=1)  # (M, E)
        return self.out_proj(self.dropout(mean))


class DualEncoder(nn.Module):
    """Pictures and captions as unit vectors of one space, near each other where they belong together.

    A judge only: see the warning at the top of this file.
    """

    def __init__(self, config: DualEncoderConfig, *, num_channels: int) -> None:
        super().__init__()
        self.config = config
        self.num_channels = num_channels
        self.picture_encoder = PictureEncoder(config, num_channels=num_channels)
        self.caption_encoder = CaptionEncoder(config)
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(config.initial_temperature)))

    def forward(self, images: Float[Tensor, "N C H W"], caption_bytes: Int[Tensor, "N L"]) -> Float[Tensor, ""]:
        """The symmetric InfoNCE loss of N pairs with N different captions (Radford et al. 2021).

        The mean of two cross-entropies: each picture among the captions, and each caption among the pictures.
        """
        pictures = F.normalize(self.picture_encoder(images), dim=1)
        captions = F.normalize(self.caption_encoder(caption_bytes), dim=1)
        logits = self.log_logit_scale.exp().clamp(max=_MAX_LOGIT_SCALE) * pictures @ captions.T
        own = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    @torch.no_grad()
    def picture_features(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Unit vectors of pictures in [-1, 1].

        Raises:
            ValueError: If pictures are not finite, or have another number of channels than those of the training.
        """
        if images.shape[1] != self.num_channels:
            raise ValueError(
                f"the dual encoder was trained on pictures of {self.num_channels} channels, but got {images.shape[1]}"
            )
        if not images.isfinite().all():
            raise ValueError("the pictures are not all finite; did the model diverge?")
        return torch.cat([F.normalize(self.picture_encoder(chunk), dim=1) for chunk in images.split(_CHUNK)])

    @torch.no_grad()
    def caption_features(self, captions: Sequence[str]) -> Float[Tensor, "M D"]:
        """Unit vectors of captions; upper and lower case are the same.

        Raises:
            ValueError: If a caption is empty or longer than `max_caption_bytes`.
        """
        caption_bytes = _to_bytes(captions, self.config.max_caption_bytes)
        return torch.cat([F.normalize(self.caption_encoder(chunk), dim=1) for chunk in caption_bytes.split(_CHUNK)])


def train_dual_encoder(
    config: DualEncoderConfig, images: UInt8[Tensor, "N C H W"], captions: Sequence[str], *, progress: bool = False
) -> DualEncoder:
    """Train the judge on training pairs, the same way every time for the same config and pairs.

    A step draws different captions, then one picture of each: two pictures of one caption in a batch would be each
    other's false negatives.

    Args:
        config: Size and training.
        images: Pictures at a byte per pixel, 0 to 255 over [-1, 1]; of the part `train` only.
        captions: One per picture.
        progress: Show a progress bar.

    Returns:
        The dual encoder in evaluation mode.

    Raises:
        ValueError: If the numbers differ, there are fewer than two different captions, a caption is empty or too long,
            or the training diverges.
    """
    _check_pairs(images, captions)
    caption_bytes = _to_bytes(captions, config.max_caption_bytes)
    pictures_of: dict[str, list[int]] = {}
    for picture, caption in enumerate(captions):
        pictures_of.setdefault(caption.lower(), []).append(picture)
    if len(pictures_of) < 2:
        raise ValueError("a dual encoder learns from pairs of different captions, but all captions are the same")
    groups = list(pictures_of.values())
    batch_size = min(config.batch_size, len(groups))
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # initial weights and dropout; the caller's random state is restored after
        encoder = DualEncoder(config, num_channels=images.shape[1]).train()
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=config.num_steps)
        for _ in tqdm(range(config.num_steps), desc="dual encoder", unit="step", disable=not progress):
            drawn = torch.randperm(len(groups), generator=generator)[:batch_size].tolist()
            luck = torch.rand(batch_size, generator=generator).tolist()
            chosen = torch.tensor([groups[i][int(u * len(groups[i]))] for i, u in zip(drawn, luck, strict=True)])
            pictures = to_unit_range(images[chosen].movedim(1, -1))
            batch = augment(pictures, max_shift=config.max_shift, pixel_noise=config.pixel_noise, generator=generator)
            loss = encoder(batch, caption_bytes[chosen])
            if not loss.isfinite():
                raise ValueError(f"the dual encoder's loss is {loss.item()}; lower its lr of {config.lr}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return encoder.eval()


def load_dual_encoder(
    images: UInt8[Tensor, "N C H W"],
    captions: Sequence[str],
    *,
    cache_dir: Path,
    config: DualEncoderConfig | None = None,
    progress: bool = False,
) -> tuple[DualEncoder, str]:
    """Read the dual encoder of these training pairs from the cache, or train it and put it there (minutes).

    Args:
        images: Training pictures; see `train_dual_encoder`.
        captions: One per picture.
        cache_dir: Holds a folder per set of pairs and config, named by a hash of both.
        config: None is the default.
        progress: Show a progress bar.

    Returns:
        The dual encoder in evaluation mode, and the SHA-256 over config and pairs, which stands beside every score.

    Raises:
        ValueError: If the pairs cannot be trained on.
        StorageError: If a cached folder is damaged, or the disk refuses.
    """
    _check_pairs(images, captions)
    config = config or DualEncoderConfig()
    fingerprint = _fingerprint(config, images, captions)
    folder = cache_dir / fingerprint[:16]
    if not folder.is_dir():
        _log.info("training the dual encoder of these pairs, once; it will be kept in %s", folder)
        trained = train_dual_encoder(config, images, captions, progress=progress)

        def write(staging: Path) -> None:
            write_tensors(staging / "dual_encoder.safetensors", dict(trained.state_dict()), {"format": "pt"})
            facts = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "num_pairs": len(captions)}
            write_json(staging / "dual_encoder.json", {**facts, "config": to_mapping(config)})

        publish_folder(folder, write, replace=True)  # another process may have trained the same one meanwhile
    verify_folder(folder)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and then overwritten
        encoder = DualEncoder(config, num_channels=images.shape[1])
    path = folder / "dual_encoder.safetensors"
    load_exactly(encoder, read_tensors(path), path)
    return encoder.eval(), fingerprint


def _to_bytes(captions: Sequence[str], max_bytes: int) -> Int[Tensor, "M L"]:
    """Lower-case captions as bytes, padded at the end."""
    encoded = [torch.tensor(ByteTokenizer().encode(caption.lower()), dtype=torch.long) for caption in captions]
    for caption, ids in zip(captions, encoded, strict=True):
        if not 0 < len(ids) <= max_bytes:
            raise ValueError(
                f"the dual encoder reads captions of 1 to {max_bytes} bytes, but {caption[:60]!r} has {len(ids)}; "
                "raise max_caption_bytes"
            )
    return nn.utils.rnn.pad_sequence(encoded, batch_first=True, padding_value=ByteTokenizer.eos_id)


def _check_pairs(images: Tensor, captions: Sequence[str]) -> None:
    if len(images) != len(captions) or not captions:
        raise ValueError(f"pictures and captions come in pairs, but got {len(images)} and {len(captions)}")


def _fingerprint(config: DualEncoderConfig, images: Tensor, captions: Sequence[str]) -> str:
    facts = [FORMAT_VERSION, to_mapping(config), tuple(images.shape), list(captions)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()
