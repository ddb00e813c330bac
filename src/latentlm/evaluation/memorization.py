"""Does a model copy its training images? Distances to the nearest training image, in pixel space.

A sample counts as near if it is closer to some training image than 99% of the training images are to their own nearest
neighbour. Real images that the model never saw set the scale: about 1% of them are near, more where the data set holds
near-duplicates. A share well above theirs is copying.

Shapes: N images, M training images; the image axes are flattened.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_NEAR_QUANTILE = 0.01
_CHUNK = 512
"""Rows of the distance matrix held at once."""


def nearest_distances(
    images: Float[Tensor, "N *shape"], train_images: Float[Tensor, "M *shape"], *, leave_one_out: bool = False
) -> Float[Tensor, " N"]:
    """Euclidean distance of each image to its nearest training image.

    Args:
        images: To look up.
        train_images: To look among.
        leave_one_out: `images` are `train_images`: each is compared with all others but itself.

    Raises:
        ValueError: If there is no training image to compare with.
    """
    if len(train_images) < 1 + leave_one_out:
        raise ValueError(f"nearest neighbours need more than {len(train_images)} training images")
    references = train_images.flatten(1).double()
    nearest = []
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].flatten(1).double()
        # Not by matrix product, whose rounding would make an exact copy look merely close.
        distances = torch.cdist(chunk, references, compute_mode="donot_use_mm_for_euclid_dist")  # (chunk, M)
        if leave_one_out:
            rows = torch.arange(len(chunk))
            distances[rows, rows + start] = torch.inf
        nearest.append(distances.amin(dim=1))
    return torch.cat(nearest)


def near_threshold(train_images: Float[Tensor, "M *shape"]) -> float:
    """The distance below which an image counts as near: first percentile of the training images' own distances."""
    return nearest_distances(train_images, train_images, leave_one_out=True).quantile(_NEAR_QUANTILE).item()


def nearest_train_share(
    images: Float[Tensor, "N *shape"], train_images: Float[Tensor, "M *shape"], *, threshold: float
) -> float:
    """Share of images whose nearest training image is closer than `threshold` (see `near_threshold`)."""
    return (nearest_distances(images, train_images) < threshold).double().mean().item()
