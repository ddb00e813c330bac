"""The numbers that say what a codebook is worth: how much of it is used, how evenly, and the rate.

N · log2(K) bits are what a picture's codes take when stored as numbers; the entropy of the codes is what they take when
coded by their frequencies, and an upper bound of what they tell. The report of the sigma-VAE (`report.py`) counts bits
too, so that the two can be compared at equal rate.

Shapes: N codes per example, K num_codes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from latentlm.tokenizers.quantizer import entropy_bits


@dataclass(frozen=True, kw_only=True)
class CodeReport:
    """The report of a vector-quantized tokenizer on some pictures."""

    beta: float
    """Weight of the commitment it was trained with."""
    num_codes: int
    """K, size of the codebook."""
    num_tokens: int
    """Codes per example."""
    num_examples: int
    num_used_codes: int
    """Codes that occur at least once."""
    entropy: float
    """Of the frequencies of the codes, bits per code. Estimated from few examples it comes out too small, by about
    (used codes) / (codes counted) · 0.7 bits."""

    @property
    def used_share(self) -> float:
        """Share of the codebook that occurs."""
        return self.num_used_codes / self.num_codes

    @property
    def perplexity(self) -> float:
        """2^entropy: how many codes would tell as much if all were used alike."""
        return 2**self.entropy

    @property
    def bits_per_example(self) -> float:
        """N · log2(K)."""
        return self.num_tokens * math.log2(self.num_codes)

    @property
    def entropy_bits_per_example(self) -> float:
        """N · entropy: the rate of an ideal code that knows the frequencies and no context."""
        return self.num_tokens * self.entropy

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bottleneck": "vq",
            "beta": self.beta,
            "num_codes": self.num_codes,
            "num_tokens": self.num_tokens,
            "num_examples": self.num_examples,
            "num_used_codes": self.num_used_codes,
            "used_share": self.used_share,
            "perplexity": self.perplexity,
            "bits_per_example": self.bits_per_example,
            "entropy_bits_per_example": self.entropy_bits_per_example,
        }

    def as_markdown(self) -> str:
        """A table with one row."""
        return (
            "| codes | used | perplexity | codes per example | bits per example | by entropy |\n"
            "|---|---|---|---|---|---|\n"
            f"| {self.num_codes} | {self.num_used_codes} ({self.used_share:.0%}) | {self.perplexity:.0f} | "
            f"{self.num_tokens} | {self.bits_per_example:.0f} | {self.entropy_bits_per_example:.0f} |\n"
            f"\nvq, beta {self.beta:g}; over {self.num_examples} examples.\n"
        )


def report_codes(batches: Iterable[Int[Tensor, "_batch N"]], *, num_codes: int, beta: float) -> CodeReport:
    """Count the codes of validation examples.

    Args:
        batches: Codes from `VQImageTokenizer.encode`.
        num_codes: Size of the codebook.
        beta: Weight of the commitment the tokenizer was trained with.

    Raises:
        ValueError: If there are no codes.
    """
    counts = torch.zeros(num_codes, dtype=torch.float64)
    num_examples = num_tokens = 0
    for codes in batches:
        counts += torch.bincount(codes.flatten().cpu(), minlength=num_codes)
        num_examples += len(codes)
        num_tokens = codes.shape[1]
    if num_examples == 0:
        raise ValueError("a report on a tokenizer needs at least one example")
    return CodeReport(
        beta=beta,
        num_codes=num_codes,
        num_tokens=num_tokens,
        num_examples=num_examples,
        num_used_codes=int((counts > 0).sum()),
        entropy=float(entropy_bits(counts)),
    )
