"""What a run of MELLE is made of, and how it is built."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from latentlm.baselines.mel_ar.generator import MelSamplingConfig
from latentlm.baselines.mel_ar.model import MelAR, MelARConfig
from latentlm.baselines.mel_ar.objective import MelARLossConfig, MelARObjective
from latentlm.baselines.mel_ar.vocoder import MelVocoder
from latentlm.training.objectives.documents import (
    DocumentRecipe,
    make_document_loader,
    objective_options,
    open_recipe_documents,
)
from latentlm.training.random_state import seeded_weights


@dataclass(frozen=True, kw_only=True)
class MelARRecipe(DocumentRecipe):
    """Autoregression over mel frames, MELLE's way: text in, speech out."""

    model: MelARConfig
    """The model. `vocabulary.num_text_ids: 0` takes the number of ids from the text tokenizer."""
    vocoder: str | None = None
    """Folder of the trained vocoder (its run's `model` folder); usually given on the command line."""
    losses: MelARLossConfig = field(default_factory=MelARLossConfig)
    """Their weights."""
    drop_cond_prob: float = 0.0
    """MELLE has no guidance, for which texts would be dropped."""
    generation: MelSamplingConfig = field(default_factory=MelSamplingConfig)
    """How frames are drawn; saved with the model as its default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, source in self.sources.items():
            templates = [] if source.speech is None else source.speech.templates
            if not templates or any(
                template.count("{speech}") != 1 or not template.endswith("{speech}") for template in templates
            ):
                raise ValueError(
                    f"sources.{name} is not of recordings behind their texts: a 'mel_ar' only speaks, so that it takes "
                    'speech sources with templates such as "{text}{speech}" and "{speech}"'
                )


def build_mel_ar(
    recipe: MelARRecipe,
) -> tuple[MelARObjective, Callable[[int], Iterator[Mapping[str, Any]]], MelARRecipe]:
    """Open the data and build what the recipe trains.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the data filled in.

    Raises:
        ValueError: If data, vocoder and model do not fit together; the message names the flag that mends it.
    """
    if recipe.vocoder is None:
        raise ValueError(
            "the recipe names no vocoder; train one first (latentlm train recipes/mel_vocoder_....yaml --out RUN) and "
            "pass --vocoder RUN/model"
        )
    vocoder = MelVocoder.from_pretrained(recipe.vocoder)
    opened = open_recipe_documents(recipe, speech_tokenizer=vocoder)
    if recipe.model.num_mels != vocoder.latent_dim:
        raise ValueError(
            f"the vocoder speaks frames of {vocoder.latent_dim} filters but the model was configured for "
            f"{recipe.model.num_mels}; pass --model.num_mels {vocoder.latent_dim}"
        )
    vocabulary = recipe.model.vocabulary
    if vocabulary.num_text_ids == 0:
        vocabulary = replace(vocabulary, num_text_ids=opened.text_tokenizer.num_ids)
    config = replace(recipe.model, vocabulary=vocabulary, vocoder_fingerprint=vocoder.fingerprint())
    recipe = replace(recipe, model=config)
    with seeded_weights(recipe.trainer.seed):
        model = MelAR(recipe.model)
    objective = MelARObjective(
        model,
        vocoder,
        opened.text_tokenizer,
        losses=recipe.losses,
        sampling=recipe.generation,
        **objective_options(recipe, opened),
    )
    return objective, make_document_loader(opened.batches, recipe.trainer), recipe
