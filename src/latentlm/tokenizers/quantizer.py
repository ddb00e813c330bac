"""Vector quantization: a vector becomes the number of the nearest entry of a codebook (van den Oord et al. 2017).

    vectors ─normalise▶ points ─nearest▶ codes ─lookup▶ quantized
    gradients go straight through, as if quantized = points + constant

The codebook is learned without gradients: each code is the moving average of the points that chose it (VQ-VAE's
appendix A.1), and a code that hardly anyone chooses is moved onto a point of the batch (Dhariwal et al. 2020, Jukebox,
"random restarts"). A new codebook is all dead codes, so the first batches fill it by the same rule. With `normalize`
points and codes lie on a sphere, where the nearest code is that of the largest cosine (Yu et al. 2022, ViT-VQGAN).

Nothing here knows of images: stages of a residual quantizer are several of these, each on what the last one left.

Shapes: M vectors of a batch, K num_codes, D code_dim.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.nn.keyed_noise import keyed_uniform

# Laplace smoothing of the cluster sizes, as in the authors' code: keeps a code that nobody ever chose finite.
_SMOOTHING = 1e-5

# Vectors looked up at a time: with 16,384 codes the matrix of distances takes 256 MB.
_ROWS_AT_A_TIME = 4096

_RESTART_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Size of a codebook, and how it follows its data."""

    num_codes: int = 4096
    """K, size of the codebook."""
    code_dim: int = 16
    """D, width of a code. Narrow codes are used more evenly (Yu et al. 2022)."""
    normalize: bool = True
    """Bring vectors and codes to length sqrt(D), unit mean square. A residual quantizer wants false: there the size of
    what an earlier stage left means something."""
    ema_decay: float = 0.99
    """Of the moving averages, per training forward pass; 0.99 is VQ-VAE's."""
    restart_below: float = 0.1
    """A code chosen less often than this share of the mean code is moved onto a vector of the batch; 0 moves only
    codes that nobody ever chose."""

    def __post_init__(self) -> None:
        if min(self.num_codes, self.code_dim) < 1:
            raise ValueError("num_codes and code_dim must be at least 1")
        if self.normalize and self.code_dim == 1:
            raise ValueError("on a sphere of code_dim 1 there are only two codes; use normalize: false or a wider code")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1)")
        if not 0 <= self.restart_below < 1:
            raise ValueError(f"restart_below is {self.restart_below}; it is a share of the mean code, in [0, 1)")


class Quantized(NamedTuple):
    """Vectors after quantization, and how the codebook fared."""

    vectors: Float[Tensor, "*batch D"]
    """The chosen codes; gradients pass to the (normalised) inputs unchanged."""
    codes: Int[Tensor, "*batch"]
    """Their numbers."""
    commitment: Float[Tensor, "*batch"]
    """Mean over D of (point - chosen code)², which pulls the point, not the code; beta multiplies it in VQ-VAE."""
    used_share: Float[Tensor, ""]
    """Share of the codebook that this batch (in training: of all ranks) chose at least once; at most M / K."""
    restarted_share: Float[Tensor, ""]
    """Share of the codebook that was moved onto vectors of this batch."""


class VectorQuantizer(nn.Module):
    """A codebook in buffers: no optimizer owns it, checkpoints and fingerprints hold it. Always float32.

    Args:
        config: Its size and pace.
    """

    codes: Tensor
    cluster_size: Tensor
    code_sum: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codes", torch.zeros(config.num_codes, config.code_dim))
        self.register_buffer("cluster_size", torch.zeros(config.num_codes))  # vectors per forward pass, averaged
        self.register_buffer("code_sum", torch.zeros(config.num_codes, config.code_dim))  # their sum, averaged

    def forward(self, vectors: Float[Tensor, "*batch D"], *, seed: int) -> Quantized:
        """Quantize, and in training mode move the codebook: dead codes before the lookup, averages after it.

        Every forward pass in training mode counts as one batch of the averages, so a step of several micro-batches
        moves the codebook several times.

        Args:
            vectors: Any float type.
            seed: Of this step; decides which vectors dead codes are moved onto. Not read in evaluation mode.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            points = self.points(vectors.float())
            flat = points.detach().flatten(0, -2)  # (M, D)
            restarted_share = flat.new_zeros(())
            if self.training:
                restarted_share = self._restart_dead_codes(flat, seed)
            codes = self._nearest(flat)
            counts, sums = self._count(flat, codes)
            quantized = self.codes[codes].view(points.shape)
            if self.training:  # in evaluation one rank may well be alone, and would wait for the others
                counts, sums = _sum_over_ranks(counts), _sum_over_ranks(sums)
                self._follow(counts, sums)
            return Quantized(
                vectors=points + (quantized - points).detach(),
                codes=codes.view(points.shape[:-1]),
                commitment=(points - quantized).square().mean(dim=-1),
                used_share=(counts > 0).float().mean(),
                restarted_share=restarted_share,
            )

    def nearest(self, vectors: Float[Tensor, "*batch D"]) -> Int[Tensor, "*batch"]:
        """Number of each vector's nearest code; of the first one among equals. Changes nothing."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self._nearest(self.points(vectors.float()).flatten(0, -2)).view(vectors.shape[:-1])

    def lookup(self, codes: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """The codes of these numbers.

        Raises:
            ValueError: If a number is none of the codebook's.
        """
        num_codes = self.config.num_codes
        if codes.numel() > 0 and not 0 <= int(codes.min()) <= int(codes.max()) < num_codes:
            raise ValueError(
                f"codes run from {int(codes.min())} to {int(codes.max())} but the codebook holds 0 to {num_codes - 1}; "
                "do they come from another tokenizer?"
            )
        return self.codes[codes]

    def points(self, vectors: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Vectors as they are compared with codes: of length sqrt(D), or unchanged without `normalize`."""
        if not self.config.normalize:
            return vectors
        return F.normalize(vectors, dim=-1) * math.sqrt(self.config.code_dim)

    def perplexity(self) -> Float[Tensor, ""]:
        """exp(entropy) of the codes' averaged use: how many codes would carry as much if all were used alike."""
        return 2 ** entropy_bits(self.cluster_size)

    def _nearest(self, points: Float[Tensor, "M D"]) -> Int[Tensor, "M"]:
        # |p - c|² without |p|², which all codes share.
        squares = self.codes.square().sum(dim=1)  # (K,)
        chunks = [(squares - 2 * rows @ self.codes.T).argmin(dim=1) for rows in points.split(_ROWS_AT_A_TIME)]
        return torch.cat(chunks)

    def _count(
        self, points: Float[Tensor, "M D"], codes: Int[Tensor, "M"]
    ) -> tuple[Float[Tensor, "K"], Float[Tensor, "K D"]]:
        """How many points chose each code, and their sum.

        A product with one-hot rows, as costly as the lookup: `index_add_` adds in another order at every call on a GPU,
        and a resumed run would not be the same run.
        """
        counts, sums = torch.zeros_like(self.cluster_size), torch.zeros_like(self.code_sum)
        for rows, chosen in zip(points.split(_ROWS_AT_A_TIME), codes.split(_ROWS_AT_A_TIME), strict=True):
            one_hot = rows.new_zeros(len(rows), self.config.num_codes).scatter_(1, chosen[:, None], 1.0)  # (M, K)
            counts += one_hot.sum(dim=0)
            sums += one_hot.T @ rows
        return counts, sums

    @torch.no_grad()
    def _follow(self, counts: Float[Tensor, "K"], sums: Float[Tensor, "K D"]) -> None:
        """Move the averages, and with them the codes (VQ-VAE, appendix A.1, with Laplace smoothing of the sizes)."""
        # A batch with numbers that are not finite must leave no trace; without a branch, which would wait for the GPU.
        weight = (1 - self.config.ema_decay) * sums.isfinite().all()
        self.cluster_size.lerp_(counts, weight)
        self.code_sum.lerp_(sums.nan_to_num(0.0, 0.0, 0.0), weight)
        total = self.cluster_size.sum()
        sizes = (self.cluster_size + _SMOOTHING) / (total + self.config.num_codes * _SMOOTHING) * total
        moved = self.points(self.code_sum / sizes[:, None])
        self.codes.copy_(torch.where(weight > 0, moved, self.codes))

    @torch.no_grad()
    def _restart_dead_codes(self, points: Float[Tensor, "M D"], seed: int) -> Float[Tensor, ""]:
        """Move dead codes onto points of the batch, each onto another one; where points run out, the rest must wait.

        Returns:
            The share of the codebook that was moved.
        """
        num_points, device = len(points), points.device
        is_dead = self.cluster_size <= self.config.restart_below * self.cluster_size.mean()
        draws = keyed_uniform(seed, torch.arange(num_points, device=device), stream=_RESTART_STREAM)
        order = draws.argsort(stable=True)
        turn = is_dead.cumsum(0) - 1  # a dead code's place among the dead
        candidates = points[order[turn.clamp(0, num_points - 1)]]  # (K, D)
        candidates = candidates.masked_fill((turn >= num_points)[:, None], torch.nan)
        # All ranks must move the same codes onto the same points; rank 0's are as random as any.
        candidates = _copy_from_rank_0(candidates)
        moves = is_dead & candidates.isfinite().all(dim=1)
        # A moved code starts as if it had been chosen as often as the mean code.
        fair_share = _sum_over_ranks(points.new_full((), num_points)) / self.config.num_codes
        self.cluster_size.copy_(torch.where(moves, fair_share, self.cluster_size))
        self.codes.copy_(torch.where(moves[:, None], candidates, self.codes))
        self.code_sum.copy_(torch.where(moves[:, None], candidates * fair_share, self.code_sum))
        return moves.float().mean()


def entropy_bits(counts: Float[Tensor, "K"]) -> Float[Tensor, ""]:
    """Entropy, in bits, of choosing codes in proportion to these counts; 0 if all are 0."""
    shares = counts / counts.sum().clamp_min(torch.finfo(counts.dtype).tiny)
    return torch.special.entr(shares).sum() / math.log(2)


def _sum_over_ranks(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def _copy_from_rank_0(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        values = values.contiguous()
        dist.broadcast(values, src=0)
    return values
