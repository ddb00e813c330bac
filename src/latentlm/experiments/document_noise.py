"""How captions suffer from noise in the pictures before them (paper Section 3.2: noise interference in Transfusion).

Transfusion draws and reads a picture in one pass, so that in training captions follow pictures under all the noise of
the schedule; LatentLM's captions always follow clean latents. Each model is scored on the same test captions with
pictures at several shares of its schedule: at 0 as models are used, beyond as Transfusion is trained. LatentLM meets
noised latents here for the first time, and is told no timestep, for it has none to be told.
"""

from dataclasses import dataclass, field
from typing import Any

from latentlm.config import from_mapping
from latentlm.evaluation.document_protocol import blind_captions
from latentlm.evaluation.image_protocol import Weights
from latentlm.experiments.document_likelihoods import captions_given, class_of_picture
from latentlm.experiments.document_options import DocumentModelOptions
from latentlm.experiments.document_run import DocumentRun
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.training_cost import Build


@dataclass(frozen=True, kw_only=True)
class DocumentNoiseOptions:
    """What is asked of a trained model of documents whose pictures are latents."""

    percents: list[int] = field(default_factory=lambda: [0, 10, 25, 50, 75, 100])
    """Levels of noise, as shares of the schedule from data (0) to noise (100)."""
    num_captions: int = 1000
    """Test captions whose likelihood is measured, at each level."""
    num_classified: int = 1000
    """Of those captions, how many compete with the captions of all other classes of their pool."""
    weights: Weights = "ema"
    step: int | None = None
    """As in `DocumentModelOptions`."""
    seed: int = 0
    """Another one, other documents."""

    def __post_init__(self) -> None:
        if not self.percents or sorted(set(self.percents)) != self.percents:
            raise ValueError(f"percents is {self.percents}; it must name levels of noise, each once, in growing order")
        if not 0 <= self.percents[0] <= self.percents[-1] <= 100:
            raise ValueError(f"percents is {self.percents}; levels of noise lie between 0 and 100")


def document_noise(context: MeasureContext, *, build: Build) -> dict[str, Any]:
    """Score the captions of a run at every level of noise.

    Args:
        context: The cell's.
        build: See `document_protocols.document_model`.

    Returns:
        `at`: by level in percent, `image_to_text` (`LikelihoodScores` of the captions) and `classified` (`ChoiceScores`
        of the own class: of every phrasing alike, and not in competition with questions); `blind`: the captions after
        another's clean picture; `curve`: the lists `percents`, `perplexity`, `nats` (of the class) and `accuracy`, for
        plots.

    Raises:
        ValueError: If the model's pictures are codes, or its recipe composes no captions.
    """
    options = from_mapping(DocumentNoiseOptions, context.options, where=f"options of {context.cell}")
    run = DocumentRun(
        context, DocumentModelOptions(weights=options.weights, step=options.step, seed=options.seed), build
    )
    documents = run.documents("image_to_caption", options.num_captions)

    def at(percent: int) -> dict[str, Any]:
        noise_level = percent / 100
        given = captions_given(run, documents, noise_level=noise_level, name=f"captions at {percent}%")
        chosen = class_of_picture(run, documents[: options.num_classified], noise_level=noise_level)
        return {"image_to_text": given.as_json(), "classified": chosen.as_json()}

    levels = {
        str(percent): remembered(context.scratch_dir, f"at_{percent}", lambda percent=percent: at(percent))
        for percent in options.percents
    }
    blind = remembered(
        context.scratch_dir, "blind", lambda: captions_given(run, blind_captions(documents), name="blind").as_json()
    )
    return {
        "at": levels,
        "blind": blind,
        "curve": {
            "percents": options.percents,
            "perplexity": [scores["image_to_text"]["perplexity"] for scores in levels.values()],
            "nats": [scores["classified"]["nats"] for scores in levels.values()],
            "accuracy": [scores["classified"]["share"]["estimate"] for scores in levels.values()],
        },
    }
