"""A trained model of documents with all that it is measured against, each opened when it is first needed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from latentlm.config import from_mapping
from latentlm.data import ImageDataConfig
from latentlm.data.datasets import Part
from latentlm.data.documents import RawDocument
from latentlm.data.documents.composed import ComposedDataConfig, open_composed
from latentlm.evaluation.document_answers import IMAGE, AskOptions
from latentlm.evaluation.document_pictures import label_ranges
from latentlm.evaluation.document_protocol import Asked, open_pictures, picture_documents, task_documents
from latentlm.evaluation.image_protocol import EvaluatedPart, ImageProtocol
from latentlm.evaluation.judges import Judges, load_judges
from latentlm.experiments.document_options import DocumentModelOptions
from latentlm.experiments.image_protocols import MODEL_FOLDERS
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.training_cost import Build
from latentlm.generation.document_pipeline import DocumentPipeline
from latentlm.generation.pipeline_folder import AnyImageTokenizer
from latentlm.storage import waiting_lock
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.document_batches import PictureReader
from latentlm.training.objectives.documents import DocumentObjective, picture_reader, with_size
from latentlm.training.trainer import kept_model

_NUM_DOCUMENTS_TO_BUILD = 64
"""Of the source that the objective is rebuilt with: a row needs some, and none is ever read."""


def composed_data(recipe: Any) -> ComposedDataConfig:
    """The labelled pictures that a recipe's documents are composed from.

    Raises:
        ValueError: If it has no such source, or several of different pools.
    """
    found = [source.composed for source in recipe.sources.values() if source.composed is not None]
    if not found:
        raise ValueError("no source of the recipe is composed: there are no labelled pictures to ask about")
    if any(data.pools != found[0].pools for data in found):
        raise ValueError("the composed sources of the recipe have different pools; they are measured on the same ones")
    return found[0]


def objective_of(recipe: Any, pipeline: DocumentPipeline, build: Build) -> DocumentObjective:
    """The recipe's objective around a trained model, for its likelihoods.

    Args:
        recipe: Of the run; one of its sources is composed.
        pipeline: The trained model, which the objective shares.
        build: Makes the objective of a recipe.
    """
    name, source = next((name, source) for name, source in recipe.sources.items() if source.composed is not None)
    few = replace(
        source.composed, num_documents=_NUM_DOCUMENTS_TO_BUILD, num_held_out_documents=_NUM_DOCUMENTS_TO_BUILD
    )
    objective, _, _ = build(replace(recipe, sources={name: replace(source, composed=few)}))
    objective.model = pipeline.model
    objective.tokenizer = pipeline.tokenizers[IMAGE]
    return objective


def first_seed(options: DocumentModelOptions, part: EvaluatedPart) -> int:
    """Of the prompts of a part; those of the other never meet them."""
    return ImageProtocol(seed=options.seed).first_seed(part)


class DocumentRun:
    """The measured run of a cell.

    Args:
        context: The cell's.
        options: Of the measurement.
        build: See `objective_of`.

    Attributes:
        recipe: The run's, with the sources that are measured on.

    Raises:
        ValueError: If none of those sources is composed.
    """

    def __init__(self, context: MeasureContext, options: DocumentModelOptions, build: Build) -> None:
        self.context = context
        self._options = options
        self._build = build
        self.recipe = replace(context.recipe, sources=options.sources) if options.sources else context.recipe
        self._composed = composed_data(self.recipe)
        self.asking = AskOptions(
            batch_size=options.batch_size,
            first_seed=first_seed(options, "test"),
            precision=options.precision,
            progress=context.progress,
        )

    @cached_property
    def pipeline(self) -> DocumentPipeline:
        """The trained model.

        Raises:
            ValueError: If the run kept no model of the step that the options name.
        """
        run_dir, step = self.context.run_dir, self._options.step
        assert run_dir is not None
        if step is None:
            return self.context.load(run_dir / MODEL_FOLDERS[self._options.weights])
        if not kept_model(run_dir, step).is_dir():
            raise ValueError(
                f"{run_dir} kept no model of step {step}; the recipe names such steps in trainer.keep_steps"
            )
        return self.context.load(kept_model(run_dir, step))

    def bar(self, name: str) -> str | None:
        """Name of a progress bar; None where none is to be shown."""
        return name if self.context.progress else None

    @cached_property
    def objective(self) -> DocumentObjective:
        """Around the trained model."""
        return objective_of(self.recipe, self.pipeline, self._build)

    @property
    def image_tokenizer(self) -> AnyImageTokenizer:
        """The model's."""
        return self.pipeline.tokenizers[IMAGE]

    @property
    def picture_length(self) -> int:
        """Tokens of a picture of the training size."""
        side = self.image_tokenizer.config.image_size
        rows, columns = self.image_tokenizer.grid(side, side)
        return rows * columns

    @property
    def text_tokenizer(self) -> StoredTextTokenizer:
        """The model's."""
        assert self.pipeline.text_tokenizer is not None
        return self.pipeline.text_tokenizer

    @cached_property
    def data(self) -> ComposedDataConfig:
        """The pools, with pictures as the model's tokenizer takes them."""
        data = with_size("documents", self._composed, self.image_tokenizer)
        assert isinstance(data, ComposedDataConfig)
        return data

    @cached_property
    def reader(self) -> PictureReader:
        """Opens their pictures."""
        says_size = self.pipeline.prompts.says_size
        side = self.context.recipe.model.vocabulary.max_grid_side if says_size else None
        return picture_reader(self.data, self.image_tokenizer, max_grid_side=side)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Class names by pool, in the order in which judges number them."""
        return {pool.noun: pool.names for pool in open_composed(self.data, part="test").pools}

    @cached_property
    def ranges(self) -> dict[str, range]:
        """The judges' labels by pool."""
        return label_ranges({noun: len(names) for noun, names in self.names.items()})

    @cached_property
    def judges(self) -> Judges:
        """Of the pictures of all pools, trained by whichever cell needs them first."""
        with waiting_lock(self.context.cache_dir / "judges.lock"):
            return load_judges(
                self._data_to_judge(), cache_dir=self.context.cache_dir / "judges", progress=self.context.progress
            )

    def _data_to_judge(self) -> ImageDataConfig:
        config = self.image_tokenizer.config
        size = {"image_size": config.image_size, "num_channels": config.num_channels}
        if self._options.judge_data is not None:
            return from_mapping(ImageDataConfig, {**size, **self._options.judge_data}, where="judge_data")
        if len(self._composed.pools) > 1:
            raise ValueError(
                f"options of {self.context.cell}: pictures of {', '.join(self._composed.pools)} are judged together; "
                "give judge_data: path, additional_paths, test_path, additional_test_paths and split_file of them all"
            )
        (pool,) = self._composed.pools.values()
        return replace(pool.image_data(), **size)

    def documents(self, task: str, count: int, part: Part = "test") -> list[RawDocument]:
        """Documents of one task."""
        return task_documents(self.data, task, part=part, count=count, seed=self._options.seed)

    def to_draw(self, count: int) -> list[Asked]:
        """Test captions of different pictures as prompts and answers."""
        return self.opened(picture_documents(self.data, part="test", count=count, seed=self._options.seed))

    def opened(self, documents: Sequence[RawDocument]) -> list[Asked]:
        """The same as prompts and answers, with their pictures decoded."""
        return [open_pictures(document, self.reader.read) for document in documents]

    def asked(self, task: str, count: int, part: Part = "test") -> list[Asked]:
        """Documents of one task as prompts and answers."""
        return self.opened(self.documents(task, count, part))

    def fields(self, task: str, count: int) -> list[Mapping[str, Any]]:
        """What is true of training documents of one task."""
        return [one.fields for one in self.documents(task, count, "train")]
