"""Pictures of captions: a setting chosen on validation, test captions drawn once, judged as pictures of classes are."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from latentlm.config import to_mapping
from latentlm.data.documents import RawImage
from latentlm.evaluation.consistency import caption_consistency
from latentlm.evaluation.document_answers import IMAGE, ask_for_pictures, sampling_changed
from latentlm.evaluation.document_pictures import PoolPanels, asked_labels, own_pictures
from latentlm.evaluation.document_protocol import Asked, plain_caption
from latentlm.evaluation.document_scores import Share
from latentlm.evaluation.dual_encoder import load_dual_encoder
from latentlm.evaluation.image_protocol import EvaluatedPart, select_score
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.experiments.document_options import DocumentModelOptions
from latentlm.experiments.document_run import DocumentRun, first_seed
from latentlm.experiments.image_protocols import through_tokens
from latentlm.experiments.protocol import remembered
from latentlm.pictures import picture_grid, save_picture
from latentlm.storage import waiting_lock

_GRID_PICTURES = 40
_DISTANCES = ("frechet", "frechet_second_space", "kernel")


class Drawing:
    """How a run draws.

    Args:
        run: The run.
        options: Of the measurement.
    """

    def __init__(self, run: DocumentRun, options: DocumentModelOptions) -> None:
        self.run = run
        self.options = options

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
        asked = self.run.asked("caption_to_image", self.options.num_pictures)
        drawn = remembered(self.run.context.scratch_dir, "pictures", lambda: self._drawn(asked))
        samples = LabelledImages(images=drawn["images"], labels=drawn["labels"])
        real = own_pictures(asked, self.run.ranges)
        save_picture(self.run.context.picture_path("text_to_image"), picture_grid(samples.images[:_GRID_PICTURES]))
        panels = PoolPanels(self.run.judges, self.run.ranges)
        judged = {"scores": samples, "floor": real, "ceiling": self._through_tokenizer(real)}
        scores = {
            row: {noun: with_errors(of_pool.as_json()) for noun, of_pool in panels.score(pictures).items()}
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
        return {"fingerprint": fingerprint} | {row: with_errors(of_row) for row, of_row in scores.as_json().items()}


def with_errors(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of pictures with the errors of the shares among them."""
    num = scores["num_images"] if "num_images" in scores else scores["num_pictures"]
    shares = [name for name in ("accuracy", "at_1", "at_5") if name in scores]
    errors = {f"{name}_standard_error": Share(num=num, share=scores[name]).standard_error for name in shares}
    return {**scores, **errors}
