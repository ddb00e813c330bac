"""What is asked of a trained model of documents, as an experiment file says it."""

from dataclasses import dataclass, field
from typing import Any

from latentlm.evaluation.dual_encoder import DualEncoderConfig
from latentlm.evaluation.image_protocol import Weights
from latentlm.nn.precision import Precision
from latentlm.training.objectives.documents import DocumentSourceConfig

MEASURES = ("text", "image_to_text", "text_to_image", "captions", "questions", "few_shot", "switching")


@dataclass(frozen=True, kw_only=True)
class DocumentModelOptions:
    """What is asked of a trained model of documents. The defaults take minutes on one core for a model of 5M."""

    measures: list[str] = field(default_factory=lambda: list(MEASURES))
    """Rows of `MEASURES`."""
    weights: Weights = "ema"
    step: int | None = None
    """A step that the recipe's `trainer.keep_steps` names: the averaged model of that step instead of the last one."""
    sources: dict[str, DocumentSourceConfig] = field(default_factory=dict)
    """What to measure on instead of the recipe's sources, spelled as there: what was learned before fine-tuning."""
    judge_data: dict[str, Any] | None = None
    """An `ImageDataConfig` of the pictures of all pools in their order (path, additional_paths, ...), which judges are
    trained on; its size is the model's. None: that of the only pool."""
    num_pictures: int = 1000
    """Test captions that are drawn, of different real pictures. Distances compare only at one count, and floor and
    ceiling have the same."""
    num_validation_pictures: int = 500
    """Of each trial."""
    trials: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    """Settings of drawing to choose from, by dotted name: [{cfg_scale: 1.0}, {cfg_scale: 1.5}]; as many for every
    model that is compared."""
    clip_weights: str | None = None
    """A folder of CLIP weights that you bring: adds the CLIP score of the drawn pictures, beside that of real ones."""
    inception_weights: str | None = None
    """A file of Inception weights that you bring: adds FID and Inception score, beside those of real pictures."""
    num_captions: int = 1000
    """Test pictures that are captioned, and captions whose likelihood is measured."""
    num_classified: int = 1000
    """Of those captions, how many compete with the captions of all other classes of their pool."""
    num_questions: int = 500
    """Of each task."""
    num_few_shot: int = 250
    """Of each number of examples."""
    num_switching: int = 1000
    """Prompts that must open a picture: half captions, half beginnings of stories; beside them half as many pictures,
    which text must follow."""
    num_train_documents: int = 5000
    """Of each task, for the majority, and for the dual encoder."""
    dual_encoder: DualEncoderConfig = field(default_factory=lambda: DualEncoderConfig(num_steps=3000))
    """The judge of R-precision; a step sees one picture of each class."""
    caption_prefix: str = ""
    """Text behind a picture that asks for a caption ("This is"), part of the caption: for mixtures in which questions
    follow a picture alone as well."""
    max_caption_tokens: int = 64
    max_answer_tokens: int = 24
    batch_size: int = 100
    seed: int = 0
    precision: Precision = "float32"
    """Of the model's matrix products while it answers; likelihoods are in float32."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.measures) - set(MEASURES)):
            raise ValueError(f"measures names {', '.join(unknown)}, but there are {', '.join(MEASURES)}")
        if self.step is not None and self.weights != "ema":
            raise ValueError(f"step {self.step} goes with weights: ema, the only ones that are kept on the way")
        if not self.trials:
            raise ValueError("trials is empty: one setting at least, {} for the recipe's own")
