"""Exposure bias, measured: what becomes of latents and pictures over a thousand positions of one document.

A LatentLM trained on documents of one label and many pictures draws whole documents. A model that is not robust to its
own sampling errors drifts: the spread of its latents leaves 1, and later pictures are worse than early ones.

Shapes: D documents, K pictures of a document, N latents of a picture, C latent_dim.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentlm.config import from_mapping
from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.judges import Judges
from latentlm.experiments.image_protocols import open_judges
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.pictures import picture_grid, save_picture


@dataclass(frozen=True, kw_only=True)
class LongGenerationOptions:
    """What is drawn."""

    num_documents: int = 120
    """D; classes take turns."""
    num_pictures: int = 64
    """K pictures of each document: 64 of 16 latents are 1,024 positions."""
    pictures_per_bin: int = 8
    """Pictures of a document that are scored together."""
    batch_size: int = 60
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    """Sampling options by dotted name."""

    def __post_init__(self) -> None:
        if self.num_pictures % self.pictures_per_bin:
            raise ValueError(f"{self.num_pictures} pictures do not make bins of {self.pictures_per_bin}")


def long_generation(context: MeasureContext) -> dict[str, Any]:
    """Draw documents; variance of latents by picture, and quality of pictures by bin.

    Returns:
        `variance`: of the normalised latents of each picture, over documents, positions and channels (data: 1);
        `bins`: for every bin of pictures its first picture, accuracy of the judge, and Fréchet distance in both spaces;
        `floor`: the same distances of as many real test pictures; `drift`: last bin minus first.
    """
    assert context.run_dir is not None
    options = from_mapping(LongGenerationOptions, context.options, where=f"options of {context.cell}")
    pipeline = context.load(context.run_dir / "model")
    tokenizer = pipeline.image_tokenizer
    size = tokenizer.config.image_size
    rows, columns = tokenizer.grid(size, size)
    labels = [number % pipeline.num_classes for number in range(options.num_documents)]
    sampling, batch_size = pipeline.sampling_with(options.changes), options.batch_size

    def draw(start: int) -> dict[str, Tensor]:
        chosen = labels[start : start + batch_size]
        seeds = [options.seed + start + number for number in range(len(chosen))]
        # A document of K pictures is one span, as long as a picture K times as high.
        return {"latents": pipeline.draw_tokens(chosen, seeds, sampling, (options.num_pictures * rows, columns))}

    starts = tqdm(range(0, len(labels), batch_size), desc="documents", disable=not context.progress)
    parts = [remembered(context.scratch_dir, f"documents{start}", lambda: draw(start))["latents"] for start in starts]  # noqa: B023
    latents = torch.cat(parts).unflatten(1, (options.num_pictures, rows * columns))  # (D, K, N, C)
    with torch.no_grad():
        decoded = [tokenizer.decode(document, grid=(rows, columns)) for document in latents]
    images = torch.stack(decoded)  # (D, K, channels, H, W)
    shown = images[:: max(1, len(images) // 10)][:10, :: options.pictures_per_bin]
    save_picture(context.picture_path("documents"), picture_grid(shown.flatten(0, 1), columns=shown.shape[1]))
    judges = open_judges(context)
    bins = [
        {"first_picture": start, **_score(judges, images, torch.tensor(labels), start, options.pictures_per_bin)}
        for start in range(0, options.num_pictures, options.pictures_per_bin)
    ]
    return {
        "num_latents": options.num_pictures * rows * columns,
        "variance": latents.double().var(dim=(0, 2, 3)).tolist(),
        "pictures": list(range(options.num_pictures)),
        "bins": bins,
        "by_bin": {name: [entry[name] for entry in bins] for name in bins[0]},
        "floor": _floor(judges, options.num_documents * options.pictures_per_bin),
        "drift": {name: bins[-1][name] - bins[0][name] for name in ("accuracy", "frechet", "frechet_second_space")},
    }


def _score(judges: Judges, images: Tensor, labels: Tensor, start: int, count: int) -> dict[str, float]:
    pictures = images[:, start : start + count]
    return _scores(
        judges,
        LabelledImages(images=pictures.flatten(0, 1), labels=labels.repeat_interleave(pictures.shape[1])),
    )


def _floor(judges: Judges, count: int) -> dict[str, float]:
    return _scores(judges, judges.test.subset(torch.arange(min(count, len(judges.test)))))


def _scores(judges: Judges, pictures: LabelledImages) -> dict[str, float]:
    panel = judges.panel
    return {
        "accuracy": panel.judge.accuracy(pictures.images, pictures.labels),
        "frechet": frechet_distance(panel.judge.features(pictures.images), panel.reference_features),
        "frechet_second_space": frechet_distance(
            panel.second_space.features(pictures.images), panel.reference_second_features
        ),
    }
