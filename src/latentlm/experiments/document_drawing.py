"""Pictures of captions: a setting chosen on validation, test captions drawn once, judged as pictures of classes are."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlm.config import to_mapping
from latentlm.data.documents import RawImage
from latentlm.evaluation.clip_score import ClipJudge
from latentlm.evaluation.consistency import CaptionConsistency, caption_consistency
from latentlm.evaluation.document_answers import IMAGE, ask_for_pictures, sampling_changed
from latentlm.evaluation.document_pictures import PoolPanels, asked_labels, own_pictures
from latentlm.evaluation.document_protocol import Asked, plain_caption
from latentlm.evaluation.document_scores import Share
from latentlm.evaluation.dual_encoder import load_dual_encoder
from latentlm.evaluation.image_protocol import EvaluatedPart, select_score
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.inception import InceptionJudge, check_weights
from latentlm.experiments.document_options import DocumentModelOptions
from latentlm.experiments.document_run import DocumentRun, first_seed
from latentlm.experiments.image_protocols import through_tokens
from latentlm.experiments.protocol import remembered
from latentlm.pictures import picture_grid, save_picture
from latentlm.storage import waiting_lock

_GRID_PICTURES = 40
_DISTANCES = ("frechet", "frechet_second_space", "kernel", "kernel_second_space")


class Drawing:
    """How a run draws.

    Args:
        run: The run.
        options: Of the measurement.

    Raises:
        ImportError: If CLIP scores are asked for without transformers.
        ValueError: If CLIP or Inception weights are not where the options say.
    """

    def __init__(self, run: DocumentRun, options: DocumentModelOptions) -> None:
        self.run = run
        self.options = options
        clip, inception = options.clip_weights, options.inception_weights
        self._clip = None if clip is None else ClipJudge(Path(clip), progress=run.context.progress)
        self._inception_weights = None if inception is None else Path(inception)
        if self._inception_weights is not None:
            check_weights(self._inception_weights)

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """Every setting with the selector's distance between validation pictures and what it draws."""
        if len(self.options.trials) == 1:
            return []
        documents = self.run.documents("caption_to_image", self.options.num_validation_pictures, "validation")
        asked = self.run.opened(documents)
        scratch_dir = self.run.context.scratch_dir
        return [
            remembered(scratch_dir, f"trial{number}", lambda changes=changes: self._trial(changes, asked))
            for number, changes in enumerate(self.options.trials)
        ]

    def _trial(self, changes: Mapping[str, Any], asked: Sequence[Asked]) -> dict[str, Any]:
        with sampling_changed(self.run.pipeline, changes):
            try:
                samples = self._draw(asked, "validation")
            except ValueError as error:  # latents that are not finite: a setting that does not work, no broken cell
                return {"changes": changes, "selector_frechet": None, "failure": str(error)}
        return {"changes": changes, "selector_frechet": select_score(samples, self.run.judges)}

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The setting whose pictures are nearest in the selector's eyes.

        Raises:
            ValueError: If not one setting could be drawn.
        """
        if not self.trials:
            return dict(self.options.trials[0])
        drawn = [trial for trial in self.trials if trial["selector_frechet"] is not None]
        if not drawn:
            raise ValueError(f"not one setting of {self.run.context.cell} could be drawn: {self.trials[0]['failure']}")
        return dict(min(drawn, key=lambda trial: trial["selector_frechet"])["changes"])

    def _draw(self, asked: Sequence[Asked], part: EvaluatedPart) -> LabelledImages:
        asking = replace(self.run.asking, first_seed=first_seed(self.options, part))
        images = ask_for_pictures(self.run.pipeline, [one.prompt for one in asked], asking)
        return LabelledImages(images=images, labels=asked_labels([one.fields for one in asked], self.run.ranges))

    def measure(self) -> dict[str, Any]:
        """Draw test captions once, with the chosen setting; see `document_protocols.document_model`."""
        asked = self.run.to_draw(self.options.num_pictures)
        drawn = remembered(self.run.context.scratch_dir, "pictures", lambda: self._drawn(asked))
        samples = LabelledImages(images=drawn["images"], labels=drawn["labels"])
        real = own_pictures(asked, self.run.ranges)
        save_picture(self.run.context.picture_path("text_to_image"), picture_grid(samples.images[:_GRID_PICTURES]))
        panels = PoolPanels(self.run.judges, self.run.ranges)
        judged = {"scores": samples, "floor": real, "ceiling": self._through_tokenizer(real)}
        scores = {
            row: {noun: with_intervals(of_pool.as_json()) for noun, of_pool in panels.score(pictures).items()}
            for row, pictures in judged.items()
        }
        over_ceiling = {
            noun: {name: of_pool[name] - scores["ceiling"][noun][name] for name in _DISTANCES}
            for noun, of_pool in scores["scores"].items()
        }
        with sampling_changed(self.run.pipeline, self.chosen):
            sampling = to_mapping(self.run.pipeline.sampling[IMAGE])
        return {
            "judges": {
                "fingerprint": self.run.judges.fingerprint,
                "judge_accuracy": self.run.judges.judge_accuracy,
                "selector_accuracy": self.run.judges.selector_accuracy,
            },
            "trials": self.trials,
            "chosen": self.chosen,
            "sampling": sampling,
            **scores,
            "over_ceiling": over_ceiling,
            "consistency": self._consistency(samples, real, asked),
            **self._foreign_scores(judged, asked),
            "pictures_per_second": len(samples) / float(drawn["seconds"]),
        }

    def _drawn(self, asked: Sequence[Asked]) -> dict[str, Tensor]:
        start = time.perf_counter()
        with sampling_changed(self.run.pipeline, self.chosen):
            samples = self._draw(asked, "test")
        seconds = torch.tensor(time.perf_counter() - start)
        return {"images": samples.images, "labels": samples.labels, "seconds": seconds}

    def _through_tokenizer(self, real: LabelledImages) -> LabelledImages:
        """What a perfect model of the tokens would draw."""
        tokenizer = self.run.image_tokenizer
        batches = zip(real.images.split(250), torch.arange(len(real)).split(250), strict=True)
        images = torch.cat([through_tokens(tokenizer, pictures, keys) for pictures, keys in batches])
        return LabelledImages(images=images, labels=real.labels)

    def _foreign_scores(self, judged: Mapping[str, LabelledImages], asked: Sequence[Asked]) -> dict[str, Any]:
        """Scores by networks that the user brings, of the same rows as our own."""
        scores: dict[str, Any] = {}
        if self._clip is not None:
            captions = [str(one.prompt[0]) for one in asked]
            scores["clip"] = {row: self._clip.score(one.images, captions).as_json() for row, one in judged.items()}
        if self._inception_weights is not None:
            reference = self.run.judges.panel.reference.images
            inception = InceptionJudge(self._inception_weights, reference, progress=self.run.context.progress)
            scores["inception"] = {row: inception.score(one.images).as_json() for row, one in judged.items()}
        return scores

    def _consistency(self, samples: LabelledImages, real: LabelledImages, asked: Sequence[Asked]) -> dict[str, Any]:
        """R-precision among one phrasing per class: others mean the same, and none of them is the right one."""
        documents = self.run.documents("caption_to_image", self.options.num_train_documents, "train")
        pictures = [self.run.reader.read(part) for one in documents for part in one.parts if isinstance(part, RawImage)]
        with waiting_lock(self.run.context.cache_dir / "dual_encoder.lock"):
            encoder, fingerprint = load_dual_encoder(
                torch.stack(pictures),
                [plain_caption(one.fields) for one in documents],
                cache_dir=self.run.context.cache_dir / "dual_encoders",
                config=self.options.dual_encoder,
                progress=self.run.context.progress,
            )
        captions = [plain_caption(one.fields) for one in asked]
        scores = caption_consistency(
            encoder,
            samples.images,
            captions,
            real_images=real.images,
            real_captions=captions,
            candidates=[
                plain_caption({"pools": [noun], "label_names": [name]})
                for noun, names in self.run.names.items()
                for name in names
            ],
        )
        return {"fingerprint": fingerprint, **consistency_as_json(scores)}


def with_intervals(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of pictures, as JSON, with intervals around the shares among them."""
    num = scores["num_images"] if "num_images" in scores else scores["num_pictures"]
    shares = [name for name in ("accuracy", "nearest_train_share", "at_1", "at_5") if name in scores]
    return {**scores, **{name: Share(num=num, share=scores[name]).as_json() for name in shares}}


def consistency_as_json(scores: CaptionConsistency) -> dict[str, Any]:
    """R-precision by row, with intervals around what was counted; chance was not."""
    counted = {"samples": scores.samples, "real_test": scores.real_test}
    rows = {row: with_intervals(of_row.as_json()) for row, of_row in counted.items()}
    return {**rows, "chance": scores.chance.as_json()}
