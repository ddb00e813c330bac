"""Whether generated pictures show their captions: R-precision by a dual encoder.

    picture ─▶ feature            ┐ cosine with every one:
    ALL test captions ─▶ features ┘ is the picture's own first, or among the first five?

The dual encoder is a judge: it is trained on training pairs alone, and never a loss, a reward or a selector of what it
scores (see dual_encoder.py). It is as weak as a few minutes of training make it, so its score on the real test pictures
and the level of chance stand beside every figure.

Shapes: N pictures, M real pictures or captions, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.evaluation.dual_encoder import DualEncoder
from latentlm.evaluation.scores_table import Columns, scores_table

_CHUNK = 512
"""Pictures whose similarities to all captions are held at once."""


@dataclass(frozen=True, kw_only=True)
class RPrecision:
    """How often pictures find their own caption among all."""

    num_pictures: int
    num_captions: int
    """Different captions that were ranked for each picture."""
    at_1: float
    """Share of pictures whose own caption is nearer than every other; a tie is no success."""
    at_5: float
    """Share of pictures whose own caption is among the five nearest."""

    columns: ClassVar[Columns] = {
        "num_pictures": ("pictures", "d"),
        "num_captions": ("captions", "d"),
        "at_1": ("R-precision@1 ↑", ".1%"),
        "at_5": ("R-precision@5 ↑", ".1%"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CaptionConsistency:
    """Generated pictures under the judge, beside the best and the worst that there are."""

    samples: RPrecision
    real_test: RPrecision
    """The judge's own strength: real test pictures and their captions."""
    chance: RPrecision
    """Expected of pictures that owe nothing to their captions."""

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    def as_markdown(self) -> str:
        """A table with a row for samples, real pictures and chance."""
        return scores_table({"samples": self.samples, "real test pictures": self.real_test, "chance": self.chance})


def r_precision(
    encoder: DualEncoder, images: Float[Tensor, "N C H W"], captions: Sequence[str], candidates: Sequence[str]
) -> RPrecision:
    """Rank all different candidates for each picture by cosine similarity (Xu et al. 2018 rank 100 random ones).

    Args:
        encoder: The judge.
        images: Pictures in [-1, 1].
        captions: What each picture was asked to show.
        candidates: ALL test captions, those of `captions` among them; repetitions count once.

    Raises:
        ValueError: If the numbers differ, a caption is no candidate, or pictures are not finite.
    """
    if len(images) != len(captions) or not captions:
        raise ValueError(f"pictures and captions come in pairs, but got {len(images)} and {len(captions)}")
    # dict: different captions in the order given; a set's order changes from run to run.
    place = {caption: i for i, caption in enumerate(dict.fromkeys(candidate.lower() for candidate in candidates))}
    strangers = [caption for caption in captions if caption.lower() not in place]
    if strangers:
        raise ValueError(f"{strangers[0]!r} and {len(strangers) - 1} more captions are not among the candidates")
    own = torch.tensor([place[caption.lower()] for caption in captions])[:, None]  # (N, 1)
    caption_features = encoder.caption_features(list(place)).double()
    better = []
    picture_features = encoder.picture_features(images).double()
    for features, chosen in zip(picture_features.split(_CHUNK), own.split(_CHUNK), strict=True):
        similarity = features @ caption_features.T  # (n, M)
        # As near as the own caption or nearer, which it is itself: what ties with it stands before it.
        better.append((similarity >= similarity.gather(1, chosen)).sum(dim=1) - 1)
    num_before = torch.cat(better)
    return RPrecision(
        num_pictures=len(images),
        num_captions=len(place),
        at_1=(num_before < 1).double().mean().item(),
        at_5=(num_before < 5).double().mean().item(),
    )


def caption_consistency(
    encoder: DualEncoder,
    images: Float[Tensor, "N C H W"],
    captions: Sequence[str],
    *,
    real_images: Float[Tensor, "M C H W"],
    real_captions: Sequence[str],
    candidates: Sequence[str],
) -> CaptionConsistency:
    """R-precision of generated pictures, of real test pictures, and by chance, all among the same captions.

    Report kinds of captions (such as `novel` and `composition`) in calls of their own, with the pictures of that kind
    and the candidates of all kinds.

    Args:
        encoder: The judge.
        images: Generated pictures in [-1, 1].
        captions: What each was asked to show.
        real_images: Real test pictures in [-1, 1].
        real_captions: Their captions.
        candidates: All test captions; see `r_precision`.

    Raises:
        ValueError: As `r_precision`.
    """
    samples = r_precision(encoder, images, captions, candidates)
    at_1, at_5 = (min(k / samples.num_captions, 1.0) for k in (1, 5))
    return CaptionConsistency(
        samples=samples,
        real_test=r_precision(encoder, real_images, real_captions, candidates),
        chance=RPrecision(num_pictures=len(images), num_captions=samples.num_captions, at_1=at_1, at_5=at_5),
    )
