"""Does a model copy its training images? Distances to the nearest training image, in pixel space.

A sample counts as near if it is closer to its nearest training image than 99% of real images are to theirs. About 1% of
real images that the model never saw are near by that definition; a share well above theirs is copying.

Shapes: N images, M training images; the image axes are flattened.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

_NEAR_QUANTILE = 0.01
_CHUNK = 1024
"""Images compared at once."""
_TRAIN_CHUNK = 8192
"""Training images compared at once: with `_CHUNK` it bounds the memory, 32 MB of distances."""
_NUM_CANDIDATES = 8
"""Candidates whose distance is taken exactly; more than one, because the preselection rounds."""


def nearest_distances(
    images: Float[Tensor, "N *shape"],
    train_images: Float[Tensor, "M *shape"] | UInt8[Tensor, "M *shape"],
    *,
    leave_one_out: bool = False,
) -> Float[Tensor, " N"]:
    """Euclidean distance of each image to its nearest training image, float64.

    The few nearest are found by matrix products in float32, whose rounding would make an exact copy look merely close;
    among them the distances are taken exactly.

    Args:
        images: To look up, in [-1, 1].
        train_images: To look among; uint8 stands for 0 to 255 over the same range, a quarter of the memory.
        leave_one_out: `images` are `train_images`: each is compared with all others but itself.

    Raises:
        ValueError: If there is no training image to compare with.
    """
    if len(train_images) < 1 + leave_one_out:
        raise ValueError(f"nearest neighbours need more than {len(train_images)} training images")
    candidates = _nearest_candidates(images, train_images, leave_one_out=leave_one_out)
    nearest = []
    for start in range(0, len(images), _CHUNK):
        chosen = candidates[start : start + _CHUNK]  # (chunk, candidates)
        differences = images[start : start + _CHUNK].flatten(1).double()[:, None] - _flat(train_images[chosen], 2)
        nearest.append(differences.square().sum(dim=2).sqrt().amin(dim=1))
    return torch.cat(nearest)


def near_threshold(train_images: Float[Tensor, "M *shape"]) -> float:
    """The distance below which an image counts as near, where no other real images are at hand: the first percentile
    of the training images' own distances to each other."""
    return first_percentile(nearest_distances(train_images, train_images, leave_one_out=True))


def first_percentile(distances: Float[Tensor, " N"]) -> float:
    """The distance that 99% of the images exceed."""
    return distances.double().quantile(_NEAR_QUANTILE).item()


def nearest_train_share(
    images: Float[Tensor, "N *shape"],
    train_images: Float[Tensor, "M *shape"] | UInt8[Tensor, "M *shape"],
    *,
    threshold: float,
) -> float:
    """Share of images whose nearest training image is closer than `threshold`."""
    return (nearest_distances(images, train_images) < threshold).double().mean().item()


def _nearest_candidates(images: Tensor, train_images: Tensor, *, leave_one_out: bool) -> Int[Tensor, "N candidates"]:
    """Numbers of the few training images that seem nearest to each image."""
    num_candidates = min(_NUM_CANDIDATES, len(train_images) - leave_one_out)
    best = torch.full((len(images), num_candidates), torch.inf)
    best_indices = torch.zeros(len(images), num_candidates, dtype=torch.int64)
    flat_images = images.flatten(1).float()
    for train_start in range(0, len(train_images), _TRAIN_CHUNK):
        train = _flat(train_images[train_start : train_start + _TRAIN_CHUNK], 1).float()
        squares = train.square().sum(dim=1)
        for start in range(0, len(images), _CHUNK):
            rows = slice(start, start + _CHUNK)
            # |a - b|² without |a|², which is the same for all b.
            scores = torch.addmm(squares, flat_images[rows], train.T, alpha=-2)  # (chunk, train chunk)
            if leave_one_out:
                _hide_own(scores, start - train_start)
            found = scores.topk(min(num_candidates, scores.shape[1]), dim=1, largest=False)
            values = torch.cat([best[rows], found.values], dim=1)
            indices = torch.cat([best_indices[rows], found.indices + train_start], dim=1)
            kept = values.topk(num_candidates, dim=1, largest=False)
            best[rows], best_indices[rows] = kept.values, indices.gather(1, kept.indices)
    return best_indices


def _hide_own(scores: Tensor, offset: int) -> None:
    """Put the image itself, at column row + offset, out of reach."""
    columns = torch.arange(len(scores)) + offset
    inside = (columns >= 0) & (columns < scores.shape[1])
    scores[torch.arange(len(scores))[inside], columns[inside]] = torch.inf


def _flat(images: Tensor, start_dim: int) -> Tensor:
    """Flattened pixels; uint8 is brought to [-1, 1] in float32, as the data sets do."""
    flat = images.flatten(start_dim)
    return flat.float().div_(127.5).sub_(1.0) if flat.dtype == torch.uint8 else flat
