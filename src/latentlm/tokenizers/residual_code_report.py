"""What the codebooks of a residual quantizer are worth: the use of each, and the rate of all.

Later codebooks quantize what looks more and more like noise, so they should be used evenly; one that is not has died.

Shapes: N frames of a clip, Q codebooks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from latentlm.tokenizers.code_report import CodeReport, report_codes


@dataclass(frozen=True, kw_only=True)
class ResidualCodeReport:
    """The report of a residual-quantized tokenizer on some clips."""

    stages: tuple[CodeReport, ...]
    """One per codebook, the first first."""
    frame_rate: float
    """Frames per second, Hz."""

    @property
    def codes_per_second(self) -> float:
        """frame_rate · Q."""
        return self.frame_rate * len(self.stages)

    @property
    def bits_per_second(self) -> float:
        """frame_rate · Q · log2(num_codes)."""
        return self.frame_rate * sum(math.log2(stage.num_codes) for stage in self.stages)

    @property
    def entropy_bits_per_second(self) -> float:
        """frame_rate · sum of the entropies: the rate of an ideal code that knows frequencies and no context."""
        return self.frame_rate * sum(stage.entropy for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        first = self.stages[0]
        return {
            "bottleneck": "rvq",
            "beta": first.beta,
            "num_quantizers": len(self.stages),
            "num_codes": first.num_codes,
            "num_examples": first.num_examples,
            "frame_rate": self.frame_rate,
            "codes_per_second": self.codes_per_second,
            "bits_per_second": self.bits_per_second,
            "entropy_bits_per_second": self.entropy_bits_per_second,
            "stages": [
                {"num_used_codes": stage.num_used_codes, "perplexity": stage.perplexity, "entropy": stage.entropy}
                for stage in self.stages
            ],
        }

    def as_markdown(self) -> str:
        """A table with a row per codebook and the rates below it."""
        lines = ["| codebook | codes | used | perplexity |", "|---|---|---|---|"]
        lines += [
            f"| {number} | {stage.num_codes} | {stage.num_used_codes} ({stage.used_share:.0%}) | "
            f"{stage.perplexity:.0f} |"
            for number, stage in enumerate(self.stages)
        ]
        lines.append("")
        lines.append(
            f"rvq, beta {self.stages[0].beta:g}: {self.frame_rate:g} frames, {self.codes_per_second:g} codes and "
            f"{self.bits_per_second:.0f} bits per second ({self.entropy_bits_per_second:.0f} by entropy); over "
            f"{self.stages[0].num_examples} examples."
        )
        return "\n".join(lines) + "\n"


def report_residual_codes(
    batches: Iterable[Int[Tensor, "_batch N Q"]], *, num_codes: int, beta: float, frame_rate: float
) -> ResidualCodeReport:
    """Count the codes of validation clips, all of one length.

    Args:
        batches: Codes from `SpeechCodec.encode`.
        num_codes: Size of each codebook.
        beta: Weight of the commitment the tokenizer was trained with.
        frame_rate: Frames per second, Hz.

    Raises:
        ValueError: If there are no codes.
    """
    by_stage = [codes.cpu().unbind(-1) for codes in batches]
    if not by_stage:
        raise ValueError("a report on a tokenizer needs at least one example")
    stages = (report_codes(list(stage), num_codes=num_codes, beta=beta) for stage in zip(*by_stage, strict=True))
    return ResidualCodeReport(stages=tuple(stages), frame_rate=frame_rate)
