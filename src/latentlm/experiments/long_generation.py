"""Exposure bias, measured: what becomes of latents and pictures over a thousand positions of one document.

A LatentLM trained on documents of many pictures of one class, the label before each, draws whole documents. A model
that is not robust to its own sampling errors drifts: the spread of its latents leaves 1, and later pictures are worse
than early ones.

Shapes: D documents, K pictures of a document, N latents of a picture, C latent_dim.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latentlm.config import from_mapping
from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.judges import Judges
from latentlm.experiments.image_protocols import open_judges
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.pictures import picture_grid, save_picture
from latentlm.tokenizers.base import LatentTokenizer


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
    changes: dict[str, Any] = field(default_factory=lambda: {"cfg_scale": 1.0})
    """Sampling options by dotted name; guidance stays off, as its second stream knows no past."""

    def __post_init__(self) -> None:
        if self.num_pictures % self.pictures_per_bin:
            raise ValueError(f"{self.num_pictures} pictures do not make bins of {self.pictures_per_bin}")


def long_generation(context: MeasureContext) -> dict[str, Any]:
    """Draw documents freely, and, as a control, the same places of documents after real pictures.

    Pictures late in a document differ from early ones for two reasons: a longer past, and the model's own errors in it.
    The control has the first alone: up to a bin its past is real. What is left between the two is exposure bias.

    Returns:
        `free` and `forced`: for every bin of pictures its first picture, accuracy of the judge, Fréchet distance in
        both spaces and variance of the normalised latents (data: 1), as lists; `excess`: free minus forced, by bin;
        `drift`: the excess of the last bin; `variance`: of the freely drawn latents of every picture; `floor`: the
        scores of as many real test pictures.
    """
    assert context.run_dir is not None
    options = from_mapping(LongGenerationOptions, context.options, where=f"options of {context.cell}")
    judges, pipeline = open_judges(context), context.load(context.run_dir / "model")
    documents = _Documents(context, options, pipeline, judges)
    free_latents = documents.draw_free()
    free, forced = _Bins(judges, documents), _Bins(judges, documents)
    shown = []
    for start in tqdm(documents.bin_starts, desc="bins", disable=not context.progress):
        latents = free_latents[:, start : start + options.pictures_per_bin]
        shown.append(free.add(start, latents)[:, 0])
        forced.add(start, documents.draw_forced(start) if start else latents)
    rows = torch.stack(shown, dim=1)[:: max(1, options.num_documents // 10)][:10]  # (10, bins, channels, H, W)
    save_picture(context.picture_path("documents"), picture_grid(rows.flatten(0, 1), columns=rows.shape[1]))
    excess = {name: [a - b for a, b in zip(free.lists[name], forced.lists[name], strict=True)] for name in free.lists}
    return {
        "num_latents": free_latents.shape[1] * free_latents.shape[2],
        "pictures": list(range(options.num_pictures)),
        "variance": free_latents.double().var(dim=(0, 2, 3)).tolist(),
        "first_picture": documents.bin_starts,
        "free": free.lists,
        "forced": forced.lists,
        "excess": excess,
        "drift": {name: values[-1] for name, values in excess.items()},
        "floor": _scores(judges, judges.test.subset(torch.arange(min(free.num_pictures, len(judges.test))))),
    }


class _Documents:
    """Draws what the options ask for, with a `LatentLMPipeline`; every part is remembered."""

    def __init__(self, context: MeasureContext, options: LongGenerationOptions, pipeline: Any, judges: Judges) -> None:
        self.context, self.options, self.pipeline, self.judges = context, options, pipeline, judges
        self.sampling = pipeline.sampling_with(options.changes)
        self.tokenizer: LatentTokenizer = pipeline.tokenizers["image"]
        self.labels = [number % pipeline.num_classes for number in range(options.num_documents)]
        self.bin_starts = list(range(0, options.num_pictures, options.pictures_per_bin))

    def draw_free(self) -> Float[Tensor, "D K N C"]:
        return self._draw("free", None, self.options.num_pictures)

    def draw_forced(self, start: int) -> Float[Tensor, "D K N C"]:
        """The pictures of one bin after `start` real ones."""
        return self._draw(f"forced{start}", self._real_latents(start), self.options.pictures_per_bin)

    def _draw(self, name: str, prefix: Tensor | None, num_pictures: int) -> Tensor:
        parts = []
        for first in range(0, len(self.labels), self.options.batch_size):
            rows = slice(first, first + self.options.batch_size)
            parts.append(
                remembered(
                    self.context.scratch_dir,
                    f"{name}_{first}",
                    partial(self._draw_rows, rows, prefix, num_pictures),
                )["latents"]
            )
        return torch.cat(parts)

    def _draw_rows(self, rows: slice, prefix: Tensor | None, num_pictures: int) -> dict[str, Tensor]:
        labels = self.labels[rows]
        latents = self.pipeline.continue_pictures(
            labels,
            None if prefix is None else prefix[rows],
            num_pictures,
            seeds=[self.options.seed + rows.start + number for number in range(len(labels))],
            sampling=self.sampling,
        )
        return {"latents": latents.contiguous()}

    @torch.no_grad()
    def _real_latents(self, num_pictures: int) -> Float[Tensor, "D M N C"]:
        """Sampled latents of real test pictures of each document's class, drawn by its number."""
        test, prefixes = self.judges.test, []
        for number, label in enumerate(self.labels):
            members = (test.labels == label).nonzero()[:, 0]
            order = torch.randperm(len(members), generator=torch.Generator().manual_seed(number))
            images = test.images[members[order[:num_pictures]]]
            keys = 1_000 * number + torch.arange(len(images))
            latents = self.tokenizer.sample_keyed(self.tokenizer.posterior(images), self.options.seed, keys)
            prefixes.append(latents)
        return torch.stack(prefixes)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "D K N C"]) -> Float[Tensor, "D K channels H W"]:
        return torch.stack([self.tokenizer.decode(document) for document in latents])


class _Bins:
    """Scores of bins, gathered as lists."""

    def __init__(self, judges: Judges, documents: _Documents) -> None:
        self.judges, self.documents = judges, documents
        self.lists: dict[str, list[float]] = {}
        self.num_pictures = 0

    def add(self, start: int, latents: Float[Tensor, "D K N C"]) -> Float[Tensor, "D K channels H W"]:
        """Score a bin's pictures; returns them."""
        images = self.documents.decode(latents)
        labels = torch.tensor(self.documents.labels).repeat_interleave(images.shape[1])
        self.num_pictures = len(labels)
        scores = _scores(self.judges, LabelledImages(images=images.flatten(0, 1), labels=labels))
        for name, value in {**scores, "variance": float(latents.double().var())}.items():
            self.lists.setdefault(name, []).append(value)
        return images


def _scores(judges: Judges, pictures: LabelledImages) -> dict[str, float]:
    panel = judges.panel
    return {
        "accuracy": panel.judge.accuracy(pictures.images, pictures.labels),
        "frechet": frechet_distance(panel.judge.features(pictures.images), panel.reference_features),
        "frechet_second_space": frechet_distance(
            panel.second_space.features(pictures.images), panel.reference_second_features
        ),
    }
