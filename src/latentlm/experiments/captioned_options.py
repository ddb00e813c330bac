"""What is asked of a model of captioned pictures, as an experiment file says it."""

from dataclasses import dataclass, field
from typing import Any

from latentlm.evaluation.dual_encoder import DualEncoderConfig
from latentlm.evaluation.image_protocol import Weights
from latentlm.nn.precision import Precision

CAPTIONED_MEASURES = ("text_to_image", "image_to_text", "captions")


@dataclass(frozen=True, kw_only=True)
class JudgedPicturesOptions:
    """What all measures of captioned pictures share."""

    source: str
    """Name of the recipe's source with captions before their pictures, and pictures before their captions."""
    judge_data: dict[str, Any]
    """An `ImageDataConfig` of its pictures: path, test_path, split_file, and columns {label: FIELD}: the field of the
    documents that judges tell apart. Its size is the model's."""
    kinds_by: str | None = None
    """Field of the test documents that names their kind; each kind is scored by itself too."""
    weights: Weights = "ema"
    trials: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    """Settings of drawing to choose from, by dotted name; as many for every model that is compared."""
    num_validation_pictures: int = 400
    """Of each trial."""
    dual_encoder: DualEncoderConfig = field(default_factory=lambda: DualEncoderConfig(num_steps=3000))
    """The judge of R-precision."""
    batch_size: int = 100
    seed: int = 0
    precision: Precision = "float32"
    """Of the model's matrix products while it answers; likelihoods are in float32."""

    def __post_init__(self) -> None:
        if not self.trials:
            raise ValueError("trials is empty: one setting at least, {} for the recipe's own")
        if "label" not in self.judge_data.get("columns", {}):
            raise ValueError("judge_data names no label; give columns: {label: FIELD}")

    @property
    def label_field(self) -> str:
        """The field that judges tell apart."""
        return self.judge_data["columns"]["label"]


@dataclass(frozen=True, kw_only=True)
class CaptionedOptions(JudgedPicturesOptions):
    """Captions to pictures and back. The defaults take minutes on one core for a model of 10M."""

    measures: list[str] = field(default_factory=lambda: list(CAPTIONED_MEASURES))
    """Rows of `CAPTIONED_MEASURES`."""
    num_pictures: int | None = None
    """Test captions that are drawn, and as many pictures that are captioned; None: all."""
    facts: list[str] = field(default_factory=list)
    """Fields that a caption is to get right: a written caption has those of the record with the same caption."""
    max_caption_tokens: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := sorted(set(self.measures) - set(CAPTIONED_MEASURES)):
            raise ValueError(f"measures names {', '.join(unknown)}, but there are {', '.join(CAPTIONED_MEASURES)}")


@dataclass(frozen=True, kw_only=True)
class EditedOptions(JudgedPicturesOptions):
    """Pictures and what is to be made of them."""

    edits: str
    """Name of the recipe's source of joined documents that end in a picture; the one before it is its source."""
    num_edits: int = 600
    """Test documents of each number of pictures in the prompt."""
    facts: list[str] = field(default_factory=list)
    """Fields of the target: the nearest target is to agree in them."""
