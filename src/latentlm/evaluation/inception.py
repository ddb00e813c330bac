"""FID and Inception score with Inception weights that the user brings, by way of the library torch-fidelity.

The weights (of the graph of 2015-12-05 that both scores are defined on) are not ours to ship and are never downloaded
here. torch-fidelity rebuilds that network with its quirks, its resizing to 299 x 299 included. From 5,000 images in
2048 dimensions FID comes out far above FID-50k: it compares with nothing published.

Shapes: N images, C channels, H height, W width, K 1008 classes of the Inception network.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latentlm.evaluation.classifier import classifier_score
from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.scores_table import Columns
from latentlm.pictures import to_uint8

_FEATURES, _LOGITS = "2048", "logits_unbiased"
"""torch-fidelity's names of the layers that FID and the Inception score are defined on."""
_NUM_SPLITS = 10
"""Salimans et al. 2016: the score is the mean over ten parts of the samples."""


@dataclass(frozen=True, kw_only=True)
class InceptionScores:
    """One set of images, seen by the Inception network."""

    fid: float
    inception_score: float
    """Mean over ten consecutive parts of the samples, whose classes should be mixed."""

    columns: ClassVar[Columns] = {
        "fid": ("FID ↓", ".2f"),
        "inception_score": ("Inception score ↑", ".2f"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def check_weights(weights: Path) -> None:
    """Refuse a file that is not there: before judges are trained and pictures drawn.

    Raises:
        ValueError: Saying which file it should be.
    """
    if not weights.is_file():
        raise ValueError(
            f"--inception-weights: there is no file {weights}; it is torch-fidelity's "
            "weights-inception-2015-12-05-6726825d.pth, which you download yourself"
        )


class InceptionJudge:
    """The Inception network with the user's weights, and what it saw in the reference images.

    Args:
        weights: The file of weights.
        reference: Real images in [-1, 1].
        batch_size: Images per pass.
        progress: Show progress bars.

    Raises:
        ImportError: If torch-fidelity is not installed; the message names the extra.
        ValueError: If there is no such file.
    """

    def __init__(
        self, weights: Path, reference: Float[Tensor, "N C H W"], *, batch_size: int = 50, progress: bool = False
    ) -> None:
        check_weights(weights)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
                FeatureExtractorInceptionV3,
            )
        except ImportError as error:
            raise ImportError(
                "FID and the Inception score need torch-fidelity: pip install 'latentlm[fid]', then pass "
                "--inception-weights FILE"
            ) from error
        self._network = FeatureExtractorInceptionV3(
            "inception-v3-compat", [_FEATURES, _LOGITS], feature_extractor_weights_path=str(weights)
        )
        self._batch_size, self._progress = batch_size, progress
        self._reference_features, _ = self._see(reference)

    def score(self, images: Float[Tensor, "N C H W"]) -> InceptionScores:
        """FID against the references, and the Inception score.

        Raises:
            ValueError: If there are fewer than ten images, or they are not finite.
        """
        if len(images) < _NUM_SPLITS:
            raise ValueError(f"the Inception score needs at least {_NUM_SPLITS} images, but got {len(images)}")
        if not images.isfinite().all():
            raise ValueError("the images are not all finite; did the model diverge?")
        features, logits = self._see(images)
        parts = logits.double().softmax(dim=1).chunk(_NUM_SPLITS)
        return InceptionScores(
            fid=frechet_distance(features, self._reference_features),
            inception_score=sum(classifier_score(part) for part in parts) / len(parts),
        )

    @torch.no_grad()
    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, 2048] and logits [N, K]."""
        features, logits = [], []
        batches = images.split(self._batch_size)
        for batch in tqdm(batches, desc="Inception", unit="batch", disable=not self._progress):
            seen_features, seen_logits = self._network(to_uint8(batch))
            features.append(seen_features)
            logits.append(seen_logits)
        return torch.cat(features), torch.cat(logits)
