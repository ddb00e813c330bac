"""How a trained model of documents is measured: the paper's Table 3 in small, for any kind of model.

    text            perplexity, bits per byte of plain text          ┐ by the training objective
    image_to_text   likelihood of captions given their pictures      ┘
    text_to_image   pictures of captions, judged as those of classes are; R-precision
    captions, questions, few_shot, switching                           greedy answers

Guidance (or the temperature of codes) is chosen among `trials` on validation captions; everything else is scored once,
on test. All partial results are remembered, so that a cut costs minutes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latentlm.config import from_mapping
from latentlm.evaluation.cost import parameters_by_part
from latentlm.evaluation.document_answers import sampling_changed
from latentlm.evaluation.document_protocol import (
    QUESTIONS,
    Asked,
    blind_captions,
    few_shot_documents,
    score_captions,
    score_questions,
    score_switching,
)
from latentlm.experiments.document_drawing import Drawing
from latentlm.experiments.document_likelihoods import captions_given, class_of_picture, name_of_picture, plain_text
from latentlm.experiments.document_options import DocumentModelOptions
from latentlm.experiments.document_run import DocumentRun
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.training_cost import Build, document_training


def document_model(context: MeasureContext, *, build: Build) -> dict[str, Any]:
    """Measure a run whose sources hold plain text and composed documents.

    Args:
        context: The cell's.
        build: Makes the objective of a recipe; its weights are replaced by the run's.

    Returns:
        By measure, those that were asked for:
        `text`: by part (`validation`, `test`) and source, `TextCounts`;
        `image_to_text`: `model` and `blind`, `LikelihoodScores`; `classified`, `ChoiceScores` of the own caption among
        those of all classes;
        `text_to_image`: `judges`; `trials`, `chosen`, `sampling`; `scores`, `floor`, `ceiling` and `over_ceiling`, each
        by `all` and pool, `ImageScores`; `consistency`, `CaptionConsistency`; of the same three rows, if the options
        bring weights, `clip`, `ClipScores`, and `inception`, `InceptionScores`; `pictures_per_second`;
        `captions`: `model` and `blind`, `CaptioningScores`;
        `questions`: by task, `AnswerScores`;
        `few_shot`: by number of examples, `AnswerScores` without a majority, `chance`, and `likelier`: `model` and
        `blind`, `ChoiceScores` of the right one among the two names;
        `switching`: `captions`, `stories`, both as `to_picture`, and `to_text`, `SwitchingScores`; `chosen`, how
        pictures were drawn; `closes_by_construction`: whether the model has no say in where a picture ends;
        and always `trained`, see `document_training`; `parameters`; and `seconds` by measure, with the training of
        judges where it came to that.
    """
    options = from_mapping(DocumentModelOptions, context.options, where=f"options of {context.cell}")
    measures = _Measures(context, options, build)
    result: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name in options.measures:
        timed = remembered(context.scratch_dir, f"measure_{name}", lambda name=name: _timed(getattr(measures, name)))
        result[name], seconds[name] = timed["result"], timed["seconds"]
    trained = remembered(
        context.scratch_dir, "trained", lambda: document_training(context.recipe, build, num_steps=options.step)
    )
    parameters = sum(parameters_by_part(measures.run.pipeline.model).values())
    return {**result, "trained": trained, "parameters": parameters, "seconds": seconds}


def _timed(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.perf_counter()
    return {"result": measure(), "seconds": time.perf_counter() - start}


class _Measures:
    """Each public method is a measure of a run, under the name that options and results have for it."""

    def __init__(self, context: MeasureContext, options: DocumentModelOptions, build: Build) -> None:
        self.options = options
        self.run = DocumentRun(context, options, build)
        self._drawing = Drawing(self.run, options)

    # -- likelihoods ---------------------------------------------------------------------------------------------------

    def text(self) -> dict[str, Any]:
        """Of the sources whose documents hold no picture."""
        return plain_text(self.run)

    def image_to_text(self) -> dict[str, Any]:
        """Captions and their ends of text, given the picture; blind: given that of another document."""
        documents = self.run.documents("image_to_caption", self.options.num_captions)
        rows = {"model": documents, "blind": blind_captions(documents)}
        likelihoods = {name: captions_given(self.run, given, name=name).as_json() for name, given in rows.items()}
        classified = class_of_picture(self.run, documents[: self.options.num_classified])
        return {**likelihoods, "classified": classified.as_json()}

    # -- pictures ------------------------------------------------------------------------------------------------------

    def text_to_image(self) -> dict[str, Any]:
        """Test captions, drawn once."""
        return self._drawing.measure()

    # -- answers -------------------------------------------------------------------------------------------------------

    def captions(self) -> dict[str, Any]:
        """Greedy captions of test pictures."""
        asked = self.run.asked("image_to_caption", self.options.num_captions)
        names = [name for of_pool in self.run.names.values() for name in of_pool]
        scores = score_captions(
            self.run.pipeline,
            asked,
            names,
            self.run.asking,
            max_new_tokens=self.options.max_caption_tokens,
            prefix=self.options.caption_prefix,
        )
        return {name: row.as_json() for name, row in scores.items()}

    def questions(self) -> dict[str, Any]:
        """Greedy answers to test questions, by task."""
        return {
            task: remembered(self.run.context.scratch_dir, f"questions_{task}", lambda task=task: self._question(task))
            for task in QUESTIONS
        }

    def _question(self, task: str) -> dict[str, Any]:
        train_fields = self.run.fields(task, self.options.num_train_documents)
        return self._answers(self.run.asked(task, self.options.num_questions), train_fields)

    def few_shot(self) -> dict[str, Any]:
        """Naming by examples, by their number. The sentence before them lists both names, so that chance is a half.

        Asked freely, a model may also say something else; which of the two names it finds likelier tells what it has
        learned from the examples even where it was never shown how to answer.
        """
        by_shots = few_shot_documents(
            self.run.data, part="test", count=self.options.num_few_shot, seed=self.options.seed
        )
        return {
            str(shots): {
                **self._answers(self.run.opened(documents)),
                "chance": 0.5,
                "likelier": {row: of_row.as_json() for row, of_row in name_of_picture(self.run, documents).items()},
            }
            for shots, documents in by_shots.items()
        }

    def _answers(self, asked: Sequence[Asked], train_fields: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        scores = score_questions(
            self.run.pipeline,
            asked,
            self.run.asking,
            max_new_tokens=self.options.max_answer_tokens,
            train_fields=train_fields,
        )
        return scores.as_json()

    def switching(self) -> dict[str, Any]:
        """Free decoding after captions, beginnings of stories and pictures, with the chosen setting of drawing."""
        half = self.options.num_switching // 2
        with sampling_changed(self.run.pipeline, self._drawing.chosen):
            scores = score_switching(
                self.run.pipeline,
                self.run.asked("caption_to_image", self.options.num_switching - half),
                self.run.asked("interleaved", half),
                self.run.asked("image_to_caption", half),
                self.run.asking,
                picture_length=self.run.picture_length,
                max_text_tokens=self.options.max_caption_tokens,
            )
        pipeline = self.run.pipeline
        return {
            "chosen": self._drawing.chosen,
            "closes_by_construction": not pipeline.ends_pictures_itself or pipeline.prompts.says_size,
            **{name: row.as_json() for name, row in scores.items()},
        }
