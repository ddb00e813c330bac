"""Choose the guidance of a trained digits model on training and validation images, without the judge of the report.

    latentlm demo --out runs/demo
    python examples/choose_guidance.py runs/demo/model/model

For each scale: how often the class of a sample agrees with its five nearest training images in pixels, how far samples
are from training images as a distribution, and whether they are copies. The rule of the digits recipe: the smallest
scale whose agreement is within one point of that of validation digits.
"""

import argparse
import dataclasses

import torch
from torch import Tensor

from latentlm.data import ImageDataConfig, open_images
from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.memorization import near_threshold, nearest_train_share
from latentlm.generation.pipeline import LatentLMPipeline

NUM_SAMPLES = 540
FIRST_SEED = 5000


def read(part: str) -> dict[str, Tensor]:
    """All digits of a part of the embedded set."""
    dataset = open_images(ImageDataConfig(source="digits", image_size=8, num_channels=1), part=part)
    batch = dataset.take(range(len(dataset)))
    assert batch is not None
    return batch


def neighbours_agree(images: Tensor, labels: Tensor, train: dict[str, Tensor]) -> float:
    """Share of images whose label is the commonest among their five nearest training images."""
    distances = torch.cdist(images.flatten(1), train["image"].flatten(1))
    nearest = distances.topk(5, largest=False).indices
    return (train["label"][nearest].mode(dim=1).values == labels).double().mean().item()


def main() -> None:
    """Sweep the scales and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a digits model folder")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0])
    arguments = parser.parse_args()

    train, validation = read("train"), read("validation")
    pipeline = LatentLMPipeline.from_pretrained(arguments.model)
    labels, threshold = train["label"][:NUM_SAMPLES], near_threshold(train["image"])
    print(f"{NUM_SAMPLES} samples, seeds from {FIRST_SEED}; {len(validation['label'])} validation digits")
    print("| guidance | neighbours agree | Fréchet distance in pixels to train | close to a training image |")
    print("|---|---|---|---|")
    for scale in arguments.scales:
        sampling = dataclasses.replace(pipeline.sampling["image"], cfg_scale=scale)
        images = pipeline.generate_images(labels.tolist(), seed=FIRST_SEED, sampling=sampling)
        agree = neighbours_agree(images, labels, train)
        distance = frechet_distance(images.flatten(1), train["image"].flatten(1))
        share = nearest_train_share(images, train["image"], threshold=threshold)
        print(f"| {scale} | {agree:.1%} | {distance:.3f} | {share:.1%} |")
    agree = neighbours_agree(validation["image"], validation["label"], train)
    share = nearest_train_share(validation["image"], train["image"], threshold=threshold)
    print(f"| validation digits | {agree:.1%} | | {share:.1%} |")


if __name__ == "__main__":
    main()
