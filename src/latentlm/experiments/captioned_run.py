"""A trained model of captioned pictures with all that it is measured against, each opened when it is first needed."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.config import from_mapping, to_mapping
from latentlm.data import ImageDataConfig
from latentlm.data.datasets import Part
from latentlm.data.documents import DocumentDataConfig, RawDocument, RawImage, open_documents
from latentlm.evaluation.captioned_pictures import answer_picture, ask_for_last
from latentlm.evaluation.distances import kernel_distance
from latentlm.evaluation.document_answers import IMAGE, AskOptions, ask_for_pictures, sampling_changed
from latentlm.evaluation.document_protocol import Asked
from latentlm.evaluation.dual_encoder import DualEncoder, load_dual_encoder
from latentlm.evaluation.image_protocol import EvaluatedPart, ImageProtocol
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.judges import Judges, load_judges
from latentlm.experiments.captioned_options import JudgedPicturesOptions
from latentlm.experiments.image_protocols import MODEL_FOLDERS, through_tokens
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.training_cost import Build
from latentlm.generation.document_pipeline import DocumentPipeline
from latentlm.generation.pipeline_folder import AnyImageTokenizer
from latentlm.storage import waiting_lock
from latentlm.training.document_batches import PictureReader
from latentlm.training.objectives.documents import DocumentObjective, picture_reader, with_size

_TOKENIZER_BATCH = 250


class CaptionedRun:
    """The measured run of a cell.

    Args:
        context: The cell's.
        options: Of the measurement.
        build: Makes the objective of a recipe, as `catalog.build`.
    """

    def __init__(self, context: MeasureContext, options: JudgedPicturesOptions, build: Build) -> None:
        self.context = context
        self._options = options
        self._build = build

    @cached_property
    def pipeline(self) -> DocumentPipeline:
        """The trained model."""
        assert self.context.run_dir is not None
        return self.context.load(self.context.run_dir / MODEL_FOLDERS[self._options.weights])

    @cached_property
    def objective(self) -> DocumentObjective:
        """The recipe's, around the trained model."""
        objective, _, _ = self._build(self.context.recipe)
        objective.model = self.pipeline.model
        objective.tokenizer = self.image_tokenizer
        return objective

    @property
    def image_tokenizer(self) -> AnyImageTokenizer:
        """The model's."""
        return self.pipeline.tokenizers[IMAGE]

    def asking(self, part: EvaluatedPart) -> AskOptions:
        """How prompts of a part are put; their seeds never meet those of the other."""
        return AskOptions(
            batch_size=self._options.batch_size,
            first_seed=ImageProtocol(seed=self._options.seed).first_seed(part),
            precision=self._options.precision,
            progress=self.context.progress,
        )

    def bar(self, name: str) -> str | None:
        """Name of a progress bar; None where none is to be shown."""
        return name if self.context.progress else None

    # -- documents -----------------------------------------------------------------------------------------------------

    def data(self, source: str) -> DocumentDataConfig:
        """A source of the recipe, with pictures as the model's tokenizer takes them.

        Raises:
            ValueError: If the recipe has no such source of files.
        """
        sources = self.context.recipe.sources
        data = sources[source].data if source in sources else None
        if data is None:
            raise ValueError(
                f"the recipe of {self.context.cell} has no source of files {source!r}; it has {', '.join(sources)}"
            )
        fitted = with_size(source, data, self.image_tokenizer)
        assert isinstance(fitted, DocumentDataConfig)
        return fitted

    @cached_property
    def reader(self) -> PictureReader:
        """Opens pictures."""
        says_size = self.pipeline.prompts.says_size
        side = self.context.recipe.model.vocabulary.max_grid_side if says_size else None
        return picture_reader(self.data(self._options.source), self.image_tokenizer, max_grid_side=side)

    def documents(self, source: str, part: Part) -> list[RawDocument]:
        """All documents of a source."""
        opened = open_documents(self.data(source), part=part)
        return [opened[index] for index in range(len(opened))]

    def captions_first(self, part: Part) -> list[RawDocument]:
        """Captions before their pictures."""
        return [one for one in self.documents(self._options.source, part) if isinstance(one.parts[-1], RawImage)]

    def pictures_first(self, part: Part) -> list[RawDocument]:
        """Pictures before their captions."""
        return [one for one in self.documents(self._options.source, part) if isinstance(one.parts[-1], str)]

    def asked(self, documents: Sequence[RawDocument]) -> list[Asked]:
        """The same as prompts and what should follow, with their pictures decoded."""
        return [ask_for_last(document, self.reader.read) for document in documents]

    # -- judges --------------------------------------------------------------------------------------------------------

    @cached_property
    def judges(self) -> Judges:
        """Of the pictures, trained by whichever cell needs them first."""
        config = self.image_tokenizer.config
        size = {"image_size": config.image_size, "num_channels": config.num_channels}
        data = from_mapping(ImageDataConfig, {**size, **self._options.judge_data}, where="judge_data")
        with waiting_lock(self.context.cache_dir / "judges.lock"):
            return load_judges(data, cache_dir=self.context.cache_dir / "judges", progress=self.context.progress)

    @cached_property
    def dual_encoder(self) -> tuple[DualEncoder, str]:
        """Of training captions and their pictures, and its fingerprint."""
        documents = self.captions_first("train")
        pictures = [self.reader.read(one.parts[-1]) for one in documents if isinstance(one.parts[-1], RawImage)]
        with waiting_lock(self.context.cache_dir / "dual_encoder.lock"):
            return load_dual_encoder(
                torch.stack(pictures),
                [str(one.parts[0]) for one in documents],
                cache_dir=self.context.cache_dir / "dual_encoders",
                config=self._options.dual_encoder,
                progress=self.context.progress,
            )

    def judged_by(self) -> dict[str, Any]:
        """What stands beside every score."""
        return {
            "fingerprint": self.judges.fingerprint,
            "judge_accuracy": self.judges.judge_accuracy,
            "selector_accuracy": self.judges.selector_accuracy,
            "dual_encoder": self.dual_encoder[1],
        }

    def labelled(self, images: Float[Tensor, "N C H W"], fields: Sequence[Mapping[str, Any]]) -> LabelledImages:
        """Pictures under the judges' classes of the documents that they are of."""
        number = {name: label for label, name in enumerate(self.judges.label_names)}
        labels = [number[one[self._options.label_field]] for one in fields]
        return LabelledImages(images=images, labels=torch.tensor(labels))

    def through_tokenizer(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """What a perfect model of the tokens would draw."""
        keys = torch.arange(len(images)).split(_TOKENIZER_BATCH)
        batches = zip(images.split(_TOKENIZER_BATCH), keys, strict=True)
        return torch.cat([through_tokens(self.image_tokenizer, pictures, of_batch) for pictures, of_batch in batches])


class Settings:
    """How a run draws: the setting whose validation pictures are nearest the real ones in the selector's eyes.

    Nearest by the kernel distance, for validation pictures are few.

    Args:
        run: The run.
        options: Of the measurement.
        validation: Documents to draw the ends of.
        name: Of the partial results that are remembered.
    """

    def __init__(
        self,
        run: CaptionedRun,
        options: JudgedPicturesOptions,
        validation: Sequence[RawDocument],
        *,
        name: str = "captions",
    ) -> None:
        self.name = name
        self._run = run
        self._options = options
        self._validation = validation[: options.num_validation_pictures]

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """Every setting with its distance; none where there is no choice."""
        if len(self._options.trials) == 1:
            return []
        asked = self._run.asked(self._validation)
        scratch_dir = self._run.context.scratch_dir
        return [
            remembered(scratch_dir, f"{self.name}_trial{number}", lambda changes=changes: self._trial(changes, asked))
            for number, changes in enumerate(self._options.trials)
        ]

    def _trial(self, changes: Mapping[str, Any], asked: Sequence[Asked]) -> dict[str, Any]:
        try:
            images = self._draw(asked, "validation", changes)
        except ValueError as error:  # latents that are not finite: a setting that does not work, no broken cell
            return {"changes": changes, "selector_kernel": None, "failure": str(error)}
        selector = self._run.judges.selector
        real = torch.stack([answer_picture(one) for one in asked])
        return {
            "changes": changes,
            "selector_kernel": kernel_distance(selector.features(images), selector.features(real)),
        }

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The best setting.

        Raises:
            ValueError: If not one could be drawn.
        """
        if not self.trials:
            return dict(self._options.trials[0])
        drawn = [trial for trial in self.trials if trial["selector_kernel"] is not None]
        if not drawn:
            cell = self._run.context.cell
            raise ValueError(f"not one setting of {cell} could be drawn: {self.trials[0]['failure']}")
        return dict(min(drawn, key=lambda trial: trial["selector_kernel"])["changes"])

    def draw(self, asked: Sequence[Asked]) -> Float[Tensor, "N C H W"]:
        """The pictures that follow test prompts, by the best setting."""
        return self._draw(asked, "test", self.chosen)

    def _draw(self, asked: Sequence[Asked], part: EvaluatedPart, changes: Mapping[str, Any]) -> Tensor:
        with sampling_changed(self._run.pipeline, changes):
            return ask_for_pictures(self._run.pipeline, [one.prompt for one in asked], self._run.asking(part))

    def as_json(self) -> dict[str, Any]:
        """`trials`, `chosen`, and `sampling`: the whole setting."""
        with sampling_changed(self._run.pipeline, self.chosen):
            sampling = to_mapping(self._run.pipeline.sampling[IMAGE])
        return {"trials": self.trials, "chosen": self.chosen, "sampling": sampling}
