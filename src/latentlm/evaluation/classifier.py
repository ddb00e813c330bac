"""A small image classifier as judge: its accuracy says whether samples show their class, its features feed distances.

It is trained on one half of the training images and never sees the others, which serve as references, nor the test
images; nothing is ever tuned or chosen by it. Built for pictures of a few dozen pixels, where Inception features mean
nothing.

Shapes: N images, C channels, H height, W width, D features, K classes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

_POOLED_SIDE = 4
"""Side of the feature map that the linear layers see, whatever the image size."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The judge's size and training; one setting for all models that are compared."""

    num_features: int = 32
    """Dimensions of the feature space; fewer make the Fréchet distance of few samples less inflated."""
    width: int = 32
    max_pooling: bool = False
    """Halve the picture's side by max-pooling after each of the first two convolutions, instead of once by a stride in
    the second: for pictures of 28 pixels or more."""
    num_steps: int = 400
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    max_shift: int = 1
    """Augmentation: images are moved by up to this many pixels along each axis, the edge pixels repeated."""
    pixel_noise: float = 0.1
    """Augmentation: standard deviation of noise added to pixels in [-1, 1]."""
    seed: int = 0


class ImageClassifier(nn.Module):
    """Three convolutions and two linear layers; `features` are standardised by what the training images gave."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: ClassifierConfig, *, num_channels: int, num_classes: int):
        super().__init__()
        self.config = config
        width = config.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(num_channels, width, 3, padding=1),
            *_pooled(config),
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=1 if config.max_pooling else 2),
            *_pooled(config),
            nn.GroupNorm(8, 2 * width),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(_POOLED_SIDE),
            nn.Flatten(),
        )
        self.feature_proj = nn.Linear(2 * width * _POOLED_SIDE**2, config.num_features)
        self.class_proj = nn.Linear(config.num_features, num_classes)
        self.register_buffer("feature_mean", torch.zeros(config.num_features))
        self.register_buffer("feature_std", torch.ones(config.num_features))

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N K"]:
        """Class logits of images in [-1, 1]."""
        hidden = F.dropout(F.gelu(self._raw_features(images)), self.config.dropout, training=self.training)
        return self.class_proj(hidden)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Features in float64, mean 0 and variance 1 per dimension over the classifier's own training images."""
        raw = torch.cat([self._raw_features(chunk) for chunk in images.split(1024)])
        return ((raw - self.feature_mean) / self.feature_std).double()

    @torch.no_grad()
    def probabilities(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N K"]:
        """Class probabilities in float64."""
        return torch.cat([self(chunk) for chunk in images.split(1024)]).double().softmax(dim=1)

    @torch.no_grad()
    def accuracy(self, images: Float[Tensor, "N C H W"], labels: Int[Tensor, " N"]) -> float:
        """Share of images classified as their label."""
        predicted = torch.cat([self(chunk).argmax(dim=1) for chunk in images.split(1024)])
        return (predicted == labels).double().mean().item()

    def _raw_features(self, images: Tensor) -> Tensor:
        return self.feature_proj(self.convolutions(images))


def train_classifier(
    config: ClassifierConfig,
    images: Float[Tensor, "N C H W"],
    labels: Int[Tensor, " N"],
    *,
    num_classes: int | None = None,
    progress: bool = False,
    name: str = "judge",
) -> ImageClassifier:
    """Train the judge on labelled images, the same way every time for the same config and images.

    Args:
        config: Size and training.
        images: In [-1, 1]; one half of the training images.
        labels: In 0..K-1.
        num_classes: K; None takes the highest label for the last class.
        progress: Show a progress bar.
        name: What the bar says.

    Returns:
        The classifier in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # initial weights and dropout; the caller's random state is restored after
        num_classes = num_classes or int(labels.max()) + 1
        classifier = ImageClassifier(config, num_channels=images.shape[1], num_classes=num_classes)
        classifier.train()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=config.num_steps)
        generator = torch.Generator().manual_seed(config.seed)
        for _ in tqdm(range(config.num_steps), desc=name, unit="step", disable=not progress):
            chosen = torch.randint(len(images), (config.batch_size,), generator=generator)
            batch = augment(
                images[chosen], max_shift=config.max_shift, pixel_noise=config.pixel_noise, generator=generator
            )
            loss = F.cross_entropy(classifier(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    classifier.eval()
    raw = classifier.features(images)  # mean and std are still 0 and 1
    classifier.feature_mean.copy_(raw.mean(dim=0))
    classifier.feature_std.copy_(raw.std(dim=0).clamp_min(1e-6))  # a dead feature stays 0 instead of dividing by 0
    return classifier


def classifier_score(probabilities: Float[Tensor, "N K"]) -> float:
    """exp of the mean KL divergence of each image's class distribution from the mean one (Salimans et al. 2016).

    Between 1 (all images look alike, or undecided) and K (each image sure of its class, all classes equally often). It
    is the Inception score's formula; only with the Inception network's probabilities is it that score.
    """
    mean = probabilities.mean(dim=0, keepdim=True)
    # xlogy: 0 log 0 is 0.
    divergence = torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, mean)
    return divergence.sum(dim=1).mean().exp().item()


def _pooled(config: ClassifierConfig) -> tuple[nn.Module, ...]:
    return (nn.MaxPool2d(2),) if config.max_pooling else ()


def augment(
    images: Float[Tensor, "N C H W"], *, max_shift: int, pixel_noise: float, generator: torch.Generator
) -> Float[Tensor, "N C H W"]:
    """Shift each image by whole pixels and add noise: what a generator may do without changing what is shown.

    Args:
        images: In [-1, 1].
        max_shift: Largest shift along each axis, pixels; edges are repeated.
        pixel_noise: Standard deviation of the noise.
        generator: Of shifts and noise.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    top, left = torch.randint(2 * max_shift + 1, (2, len(images), 1, 1), generator=generator)
    rows = top + torch.arange(height).view(1, -1, 1)  # (N, H, 1)
    columns = left + torch.arange(width).view(1, 1, -1)  # (N, 1, W)
    items = torch.arange(len(images)).view(-1, 1, 1)
    shifted = padded.movedim(1, -1)[items, rows, columns].movedim(-1, 1)  # (N, C, H, W)
    return shifted + pixel_noise * torch.randn(shifted.shape, generator=generator)
