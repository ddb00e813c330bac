"""Scores of an image tokenizer: what its decoder gives back, and what its tokens carry.

Pictures of the part `test` are encoded and decoded, from the posterior's mean and from a sample of it as models are
trained (a vector-quantized tokenizer has no noise: one way). The real pictures themselves are the last row.

Shapes: B batch, N tokens per image, C channels, H height, W width.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.judges import Judges
from latentlm.evaluation.reconstruction import psnr, ssim
from latentlm.evaluation.scores_table import Columns, scores_table
from latentlm.evaluation.spectrum import high_frequency_energy
from latentlm.tokenizers.code_report import CodeReport, report_codes
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.report import TokenizerReport, report_tokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer

_SAMPLE_SEED = 0
"""Of the posterior's noise, which hangs on each picture's number: the same for every tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionScores:
    """Reconstructions of real pictures."""

    psnr: float
    """dB; infinite for the pictures themselves."""
    ssim: float
    rfd: float
    """Fréchet distance to the very pictures that were reconstructed, in the judge's features: rFID's protocol."""
    rfd_second_space: float
    frechet: float
    """Fréchet distance to the references: what a perfect generator of these tokens would score."""
    frechet_second_space: float
    accuracy: float
    """Share that the judge still takes for their class."""
    high_frequency: float
    """Energy above half of Nyquist over that of the pictures."""

    columns: ClassVar[Columns] = {
        "psnr": ("PSNR, dB ↑", ".2f"),
        "ssim": ("SSIM ↑", ".4f"),
        "rfd": ("rFD, judge ↓", ".3f"),
        "rfd_second_space": ("rFD, second space ↓", ".3f"),
        "frechet": ("Fréchet to references, judge ↓", ".3f"),
        "frechet_second_space": ("second space ↓", ".3f"),
        "accuracy": ("accuracy ↑", ".1%"),
        "high_frequency": ("high frequencies", ".2f"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name; an infinite PSNR is None."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class TokenizerScores:
    """An image tokenizer on test pictures."""

    num_images: int
    judge_accuracy: float
    judges_fingerprint: str
    reconstructions: dict[str, ReconstructionScores]
    """By what was decoded: "mean" and "sample", or "codes"; and "real", the pictures themselves."""
    tokens: TokenizerReport | CodeReport | None
    """The sigma table of continuous latents, the use of a codebook, or None where beta is not known."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "num_images": self.num_images,
            "judge_accuracy": self.judge_accuracy,
            "judges_fingerprint": self.judges_fingerprint,
            "reconstructions": {name: scores.as_json() for name, scores in self.reconstructions.items()},
            "tokens": None if self.tokens is None else self.tokens.as_json(),
        }

    def as_markdown(self) -> str:
        """Both tables."""
        names = {"mean": "decoded from the mean", "sample": "decoded from a sample", "codes": "decoded from the codes"}
        rows = {names.get(name, "the pictures themselves"): scores for name, scores in self.reconstructions.items()}
        tokens = "" if self.tokens is None else f"\n{self.tokens.as_markdown()}"
        return (
            f"{scores_table(rows)}\n{self.num_images} test pictures. The judge is right on {self.judge_accuracy:.1%} "
            f"of real test pictures.\n{tokens}"
        )


def score_tokenizer(
    tokenizer: ImageTokenizer | VQImageTokenizer,
    judges: Judges,
    *,
    beta: float | None = None,
    num_images: int | None = None,
    batch_size: int = 250,
    progress: bool = False,
) -> TokenizerScores:
    """Score a tokenizer on test pictures.

    Args:
        tokenizer: In evaluation mode, on any device.
        judges: Of the data set it was trained on.
        beta: Weight of the regularizer it was trained with, for the table of its tokens.
        num_images: The first so many test pictures; None takes all.
        batch_size: Pictures encoded at a time.
        progress: Show a progress bar.

    Raises:
        ValueError: If the tokenizer takes other pictures than the data set's.
    """
    real = judges.test.subset(torch.arange(min(num_images or len(judges.test), len(judges.test))))
    bar = tqdm(total=len(real), desc="reconstructing", unit="image", disable=not progress)
    with bar, torch.inference_mode():
        images = _Batches(real.images, batch_size, _device_of(tokenizer), bar)
        if isinstance(tokenizer, VQImageTokenizer):
            decoded, tokens = _through_codes(tokenizer, images, beta)
        else:
            decoded, tokens = _through_latents(tokenizer, images, beta)
    return TokenizerScores(
        num_images=len(real),
        judge_accuracy=judges.judge_accuracy,
        judges_fingerprint=judges.fingerprint,
        reconstructions={name: _score(pictures, real, judges) for name, pictures in decoded.items()}
        | {"real": _score(real.images, real, judges)},
        tokens=tokens,
    )


class _Batches:
    """Batches of pictures on a device; the bar moves with them."""

    def __init__(self, images: Tensor, batch_size: int, device: torch.device, bar: tqdm) -> None:
        self._images, self._batch_size, self._device, self._bar = images, batch_size, device, bar

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures and their numbers."""
        for start in range(0, len(self._images), self._batch_size):
            batch = self._images[start : start + self._batch_size].to(self._device)
            yield batch, torch.arange(start, start + len(batch), device=self._device)
            self._bar.update(len(batch))


def _through_latents(
    tokenizer: ImageTokenizer, batches: _Batches, beta: float | None
) -> tuple[dict[str, Tensor], TokenizerReport | None]:
    from_mean, from_sample, posteriors = [], [], []
    for images, numbers in batches:
        posterior = tokenizer.posterior(images)
        posteriors.append(posterior)
        grid = tokenizer.grid(*images.shape[2:])
        from_mean.append(tokenizer.decode(tokenizer.statistics.normalize(posterior.mean), grid=grid).cpu())
        sample = tokenizer.sample_keyed(posterior, _SAMPLE_SEED, numbers)
        from_sample.append(tokenizer.decode(sample, grid=grid).cpu())
    report = None if beta is None else report_tokenizer(posteriors, tokenizer.config.bottleneck, beta=beta)
    return {"mean": torch.cat(from_mean), "sample": torch.cat(from_sample)}, report


def _through_codes(
    tokenizer: VQImageTokenizer, batches: _Batches, beta: float | None
) -> tuple[dict[str, Tensor], CodeReport | None]:
    decoded, all_codes = [], []
    for images, _ in batches:
        codes = tokenizer.encode(images)
        all_codes.append(codes.cpu())
        decoded.append(tokenizer.decode(codes, grid=tokenizer.grid(*images.shape[2:])).cpu())
    report = None if beta is None else report_codes(all_codes, num_codes=tokenizer.num_codes, beta=beta)
    return {"codes": torch.cat(decoded)}, report


def _score(pictures: Float[Tensor, "B C H W"], real: LabelledImages, judges: Judges) -> ReconstructionScores:
    panel = judges.panel
    panel.check_shape(pictures)
    features, second = panel.judge.features(pictures), panel.second_space.features(pictures)
    return ReconstructionScores(
        psnr=psnr(pictures, real.images),
        ssim=ssim(pictures, real.images),
        rfd=frechet_distance(features, panel.judge.features(real.images)),
        rfd_second_space=frechet_distance(second, panel.second_space.features(real.images)),
        frechet=frechet_distance(features, panel.reference_features),
        frechet_second_space=frechet_distance(second, panel.reference_second_features),
        accuracy=panel.judge.accuracy(pictures, real.labels),
        high_frequency=high_frequency_energy(pictures) / high_frequency_energy(real.images),
    )


def _device_of(tokenizer: ImageTokenizer | VQImageTokenizer) -> torch.device:
    return next(tokenizer.parameters()).device
