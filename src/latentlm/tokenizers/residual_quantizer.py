"""Residual vector quantization: each codebook quantizes what the ones before it left (Zeghidour et al. 2021).

    residual = vector;  for each codebook: code = nearest(residual), residual -= lookup(code)
    quantized = sum of the looked-up codes

The codes are nested: the first q of Q are the codes at q codebooks, so that one model serves every rate. Quantizer
dropout trains it to: in training some examples are quantized by a random number of codebooks only (Kumar et al. 2023,
DAC). Their commitment, too, is that of these codebooks; the codebooks themselves follow all examples.

Shapes: B examples, N vectors of an example, Q codebooks, q of them used, D code_dim.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentlm.nn.keyed_noise import combine_keys, keyed_uniform
from latentlm.tokenizers.quantizer import QuantizerConfig, VectorQuantizer

_DROPOUT_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class ResidualQuantizerConfig:
    """Number of codebooks, and the codebooks."""

    num_quantizers: int = 8
    """Q."""
    quantizer: QuantizerConfig = field(
        default_factory=lambda: QuantizerConfig(num_codes=1024, code_dim=64, normalize=False)
    )
    """Every codebook."""
    dropout_ratio: float = 0.5
    """Share of the training examples that use a random number of codebooks, 1 to Q (0.5: DAC)."""

    def __post_init__(self) -> None:
        if self.num_quantizers < 1:
            raise ValueError(f"num_quantizers is {self.num_quantizers}; it must be at least 1")
        if self.quantizer.normalize:
            raise ValueError("a residual quantizer needs normalize: false; the size of a residual means something")
        if not 0 <= self.dropout_ratio <= 1:
            raise ValueError(f"dropout_ratio is {self.dropout_ratio}; it must lie in [0, 1]")


class ResidualQuantized(NamedTuple):
    """Vectors after residual quantization, and how the codebooks fared."""

    vectors: Float[Tensor, "B N D"]
    """Sum of the codes in use; gradients pass to the inputs unchanged."""
    codes: Int[Tensor, "B N Q"]
    """Numbers of the nearest codes of all codebooks, those that an example does not use too."""
    commitment: Float[Tensor, "B N"]
    """Mean over D and over the codebooks in use of (residual - code)²."""
    num_used_quantizers: Int[Tensor, "B"]
    """Codebooks that each example uses."""
    used_share: Float[Tensor, "Q"]
    """Share of each codebook that this batch chose at least once."""
    restarted_share: Float[Tensor, "Q"]
    """Share of each codebook that was moved onto vectors of this batch."""


class ResidualQuantizer(nn.Module):
    """Q codebooks in buffers; in training mode they follow their vectors (`quantizer.py`). Always float32.

    Args:
        config: Number and size.
    """

    def __init__(self, config: ResidualQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        # Not in a ModuleList, whose entries training compiles: a codebook's seed is another at every step.
        for stage in range(config.num_quantizers):
            self.add_module(f"codebook_{stage}", VectorQuantizer(config.quantizer))

    @property
    def codebooks(self) -> list[VectorQuantizer]:
        """In the order of their use."""
        return cast(list[VectorQuantizer], list(self.children()))

    def forward(self, vectors: Float[Tensor, "B N D"], *, seed: int, keys: Int[Tensor, "B"]) -> ResidualQuantized:
        """Quantize for training.

        Args:
            vectors: Any float type.
            seed: Of this step, for restarts and dropout. Not read in evaluation mode.
            keys: One per example: how many codebooks an example uses depends on (seed, key) alone.
        """
        num_used = self._draw_num_used(seed, keys)
        vectors = vectors.float()
        residual, total = vectors, torch.zeros_like(vectors)
        results, commitment = [], 0.0
        for stage, codebook in enumerate(self.codebooks):
            result = codebook(residual, seed=int(combine_keys(seed, stage)))
            is_used = (stage < num_used).float()  # (B,)
            code = result.vectors.detach()
            total = total + is_used[:, None, None] * code
            commitment = commitment + is_used[:, None] * result.commitment
            # Codes are constants here: each commitment pulls the vector itself, from where this stage finds it.
            residual = residual - code
            results.append(result)
        return ResidualQuantized(
            vectors=vectors + (total - vectors).detach(),
            codes=torch.stack([result.codes for result in results], dim=-1),
            commitment=commitment / num_used[:, None],
            num_used_quantizers=num_used,
            used_share=torch.stack([result.used_share for result in results]),
            restarted_share=torch.stack([result.restarted_share for result in results]),
        )

    def encode(self, vectors: Float[Tensor, "B N D"], *, num_quantizers: int | None = None) -> Int[Tensor, "B N q"]:
        """Codes of vectors; changes nothing, in training mode neither.

        Args:
            vectors: Any float type.
            num_quantizers: q, the first so many; None uses all.

        Raises:
            ValueError: If there are not so many codebooks.
        """
        num_quantizers = self.config.num_quantizers if num_quantizers is None else num_quantizers
        self._refuse_unless_codebooks(num_quantizers)
        residual, codes = vectors.float(), []
        for codebook in self.codebooks[:num_quantizers]:
            codes.append(codebook.nearest(residual))
            residual = residual - codebook.lookup(codes[-1])
        return torch.stack(codes, dim=-1)

    def lookup(self, codes: Int[Tensor, "B N q"]) -> Float[Tensor, "B N D"]:
        """Sum of the codes of the first q codebooks.

        Raises:
            ValueError: If there are not so many codebooks, or a number is none of its codebook's.
        """
        self._refuse_unless_codebooks(codes.shape[-1])
        stages = zip(self.codebooks, codes.unbind(-1), strict=False)
        return torch.stack([codebook.lookup(numbers) for codebook, numbers in stages]).sum(dim=0)

    def perplexities(self) -> Float[Tensor, "Q"]:
        """Of each codebook: how many codes would carry as much if all were used alike."""
        return torch.stack([codebook.perplexity() for codebook in self.codebooks])

    def _draw_num_used(self, seed: int, keys: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        num_quantizers = self.config.num_quantizers
        if not self.training:
            return torch.full_like(keys, num_quantizers)
        is_dropped, fraction = keyed_uniform(seed, keys, (2,), stream=_DROPOUT_STREAM).unbind(-1)
        drawn = 1 + (fraction * num_quantizers).long()  # 1 … Q: the fraction is below 1
        return torch.where(is_dropped < self.config.dropout_ratio, drawn, num_quantizers)

    def _refuse_unless_codebooks(self, num_quantizers: int) -> None:
        if not 1 <= num_quantizers <= self.config.num_quantizers:
            raise ValueError(
                f"{num_quantizers} codes per vector were asked for, but this tokenizer has 1 to "
                f"{self.config.num_quantizers}"
            )
