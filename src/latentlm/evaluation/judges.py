"""The networks that judge generated images of a data set: trained once, kept on disk, the same every time.

    train ─ judge half ─────▶ judge (classifier), second space (random features, no labels)
          └ reference half ─▶ selector (another classifier); real references of the distances
    validation ─▶ what the selector compares with: guidance, temperature and steps are chosen here, never by the judge
    test ───────▶ the floor of every score, and the judge's accuracy that stands beside them

A folder of judges is named by a hash of their config and of every pixel and label that they depend on: other data,
another split or another setting is another folder.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from latentlm.config import to_mapping
from latentlm.data import ImageDataConfig, ImageDataset, open_images, read_once
from latentlm.data.datasets import split_of
from latentlm.data.images import to_unit_range
from latentlm.evaluation.classifier import ClassifierConfig, ImageClassifier, train_classifier
from latentlm.evaluation.image_scores import LabelledImages, Panel
from latentlm.evaluation.memorization import first_percentile, nearest_distances
from latentlm.evaluation.second_space import RandomFeatures, SecondSpaceConfig
from latentlm.pretrained import load_exactly
from latentlm.storage import publish_folder, read_json, read_tensors, verify_folder, write_json, write_tensors

FORMAT_VERSION = 1
"""Part of the folder's name: raised whenever code here changes what the same config trains."""

_READ_BATCH = 1024
_SIDE_TO_POOL = 24
"""Smaller pictures are not halved twice by max-pooling: their feature maps would be smaller than 6 pixels a side."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JudgesConfig:
    """Sizes and training of the three networks. The defaults suit pictures of 28 to 32 pixels; see `default_judges`."""

    judge: ClassifierConfig = field(
        default_factory=lambda: ClassifierConfig(max_pooling=True, num_steps=3000, pixel_noise=0.05)
    )
    second_space: SecondSpaceConfig = field(default_factory=SecondSpaceConfig)
    selector: ClassifierConfig = field(
        default_factory=lambda: ClassifierConfig(num_features=24, width=24, num_steps=1200, pixel_noise=0.05, seed=1)
    )
    """Of another shape and seed than the judge, so that what is chosen by it is not chosen for the judge's quirks."""


def default_judges(image_size: int) -> JudgesConfig:
    """The config for square pictures of this size: smaller networks below 24 pixels, such as for the 8 x 8 digits."""
    if image_size >= _SIDE_TO_POOL:
        return JudgesConfig()
    return JudgesConfig(judge=ClassifierConfig(), selector=ClassifierConfig(num_features=24, width=24, seed=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """Everything that generators and tokenizers of one data set are scored with.

    Attributes:
        config: What was trained.
        fingerprint: SHA-256 over config and data, as hex; stands beside every score.
        panel: Judge, second space, references and training images.
        selector: The classifier that chooses settings, by validation images.
        selector_test: Real images that the selector never saw, drawn from the judge half: its floor.
        validation: The part `validation`.
        test: The part `test`.
        label_names: Name of each class.
        judge_accuracy: On the part `test`.
        selector_accuracy: On the part `validation`.
    """

    config: JudgesConfig
    fingerprint: str
    panel: Panel
    selector: ImageClassifier
    selector_test: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    label_names: tuple[str, ...]
    judge_accuracy: float
    selector_accuracy: float

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.label_names)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pixels:
    """Pictures at a byte per pixel, which a whole training set fits in."""

    pixels: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]

    def take(self, chosen: Tensor) -> LabelledImages:
        images = to_unit_range(self.pixels[chosen].movedim(1, -1))
        return LabelledImages(images=images, labels=self.labels[chosen])

    def all(self) -> LabelledImages:
        return self.take(torch.arange(len(self.labels)))


def load_judges(
    data: ImageDataConfig,
    *,
    cache_dir: Path,
    config: JudgesConfig | None = None,
    num_references: int = 5000,
    reference_seed: int = 0,
    progress: bool = False,
) -> Judges:
    """Read the judges of a data set from the cache, or train them and put them there (minutes).

    Args:
        data: The data set that the models were trained on; it needs test images.
        cache_dir: Holds a folder per data set and config.
        config: None is `default_judges`.
        num_references: Real images to compare with, drawn from the reference half; fewer if it has fewer.
        reference_seed: Of that draw.
        progress: Show progress bars.

    Raises:
        DataError: If the data are missing, or have no test part.
        StorageError: If a cached folder is damaged, or the disk refuses.
    """
    config = config or default_judges(data.image_size)
    dataset = open_images(data, part="train")
    train, keys = _read(dataset, progress=progress)
    test, _ = _read(open_images(data, part="test"), progress=progress)
    validation, _ = _read(open_images(data, part="validation"), progress=progress)
    split = split_of(data, len(dataset.source))
    in_judge_half = torch.from_numpy(np.isin(keys, dataset.source.keys(split.judge_half)))
    judge_half, reference_half = in_judge_half.nonzero()[:, 0], (~in_judge_half).nonzero()[:, 0]

    num_channels, num_classes = train.pixels.shape[1], dataset.num_classes
    judge = ImageClassifier(config.judge, num_channels=num_channels, num_classes=num_classes)
    selector = ImageClassifier(config.selector, num_channels=num_channels, num_classes=num_classes)
    second_space = RandomFeatures(config.second_space, num_channels=num_channels)
    networks: dict[str, nn.Module] = {"judge": judge, "second_space": second_space, "selector": selector}
    fingerprint = _fingerprint(config, [train, validation, test], in_judge_half)
    folder = cache_dir / fingerprint[:16]
    if not folder.is_dir():
        _log.info("training the judges of this data set, once; they will be kept in %s", folder)
        half = train.take(judge_half)
        trained = train_classifier(
            config.judge, half.images, half.labels, num_classes=num_classes, progress=progress, name="judge"
        )
        judge.load_state_dict(trained.state_dict())
        second_space.fit(half.images[_draw(torch.arange(len(half)), config.second_space.num_fitted, reference_seed)])
        half = train.take(reference_half)
        trained = train_classifier(
            config.selector, half.images, half.labels, num_classes=num_classes, progress=progress, name="selector"
        )
        selector.load_state_dict(trained.state_dict())
        _save(folder, networks, config, train, validation, test)
    facts = _load(folder, networks)
    references = _draw(reference_half, num_references, reference_seed)
    return Judges(
        config=config,
        fingerprint=fingerprint,
        panel=Panel(
            judge=judge,
            second_space=second_space,
            reference=train.take(references),
            train_images=train.pixels,
            near_threshold=facts["near_threshold"],
        ),
        selector=selector,
        selector_test=train.take(_draw(judge_half, num_references, reference_seed)),
        validation=validation.all(),
        test=test.all(),
        label_names=dataset.label_names,
        judge_accuracy=facts["judge_accuracy"],
        selector_accuracy=facts["selector_accuracy"],
    )


def _save(
    folder: Path,
    networks: dict[str, nn.Module],
    config: JudgesConfig,
    train: _Pixels,
    validation: _Pixels,
    test: _Pixels,
) -> None:
    """Write the networks and the few numbers that every user of them needs."""
    judge, selector = networks["judge"].eval(), networks["selector"].eval()
    assert isinstance(judge, ImageClassifier)
    assert isinstance(selector, ImageClassifier)
    real_test, real_validation = test.all(), validation.all()
    facts = {
        "format_version": FORMAT_VERSION,
        "config": to_mapping(config),
        "judge_accuracy": judge.accuracy(real_test.images, real_test.labels),
        "selector_accuracy": selector.accuracy(real_validation.images, real_validation.labels),
        # Real test images set the scale: 1% of them are this near to a training image.
        "near_threshold": first_percentile(nearest_distances(real_test.images, train.pixels)),
    }

    def write(staging: Path) -> None:
        for name, network in networks.items():
            write_tensors(staging / f"{name}.safetensors", dict(network.state_dict()), {"format": "pt"})
        write_json(staging / "judges.json", facts)

    folder.parent.mkdir(parents=True, exist_ok=True)
    publish_folder(folder, write, replace=True)  # another process may have trained the same ones meanwhile


def _load(folder: Path, networks: dict[str, nn.Module]) -> dict[str, Any]:
    verify_folder(folder)
    for name, network in networks.items():
        path = folder / f"{name}.safetensors"
        load_exactly(network, read_tensors(path), path)
        network.eval()
    return read_json(folder / "judges.json")


def _read(dataset: ImageDataset, *, progress: bool) -> tuple[_Pixels, np.ndarray]:
    """All readable pictures of a part, and their keys."""
    pixels, labels, keys = [], [], []
    with tqdm(total=len(dataset), desc="reading", unit="image", disable=not progress, leave=False) as bar:
        for position, batch in read_once(dataset, batch_size=_READ_BATCH):
            # Exact: the pictures came from 8-bit pixels.
            pixels.append(((batch["image"] + 1) * 127.5).round().to(torch.uint8))
            labels.append(batch["label"])
            keys.append(batch["key"])
            bar.update(position - bar.n)
    return _Pixels(pixels=torch.cat(pixels), labels=torch.cat(labels)), torch.cat(keys).numpy()


def _draw(indices: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the indices, or all, sorted."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return indices[order[:count]].sort().values


def _fingerprint(config: JudgesConfig, parts: list[_Pixels], in_judge_half: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, to_mapping(config)], sort_keys=True).encode())
    for tensor in [in_judge_half, *(tensor for part in parts for tensor in (part.pixels, part.labels))]:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
