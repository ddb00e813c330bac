"""What a run of the codec language model is made of, and how it is built."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from latentlm.baselines.codec_lm.model import CodecLM, CodecLMConfig
from latentlm.baselines.codec_lm.objective import CodecLMObjective
from latentlm.baselines.codec_lm.sampling import CodecSamplingConfig
from latentlm.tokenizers.speech import SpeechCodec
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.objectives.documents import (
    DocumentRecipe,
    make_document_loader,
    objective_options,
    open_recipe_documents,
)
from latentlm.training.random_state import seeded_weights

_SOUND = "{speech}"


@dataclass(frozen=True, kw_only=True)
class CodecLMRecipe(DocumentRecipe):
    """A language model of a speech codec's codes. Of its sources each holds recordings, spoken by their templates."""

    model: CodecLMConfig
    """The model. Its numbers of ids and codes are taken from the tokenizers."""
    speech_tokenizer: str | None = None
    """Folder of the trained codec (its run's `model` folder); usually given on the command line."""
    speech_generation: CodecSamplingConfig = field(default_factory=CodecSamplingConfig)
    """How codes are sampled; saved with the model as its default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer is not None:
            raise ValueError("a 'codec_lm' reads no pictures: leave tokenizer out; its codec is speech_tokenizer")
        for name, source in self.sources.items():
            if source.speech is None:
                raise ValueError(f"a 'codec_lm' learns from recordings alone: give sources.{name}.speech")
            for template in source.speech.templates:
                if template.count(_SOUND) != 1 or not template.endswith(_SOUND):
                    raise ValueError(
                        f"the template {template!r} of sources.{name} does not end with its sound; a 'codec_lm' "
                        "speaks, and reads no speech"
                    )


def build_codec_lm(
    recipe: CodecLMRecipe,
) -> tuple[CodecLMObjective, Callable[[int], Iterator[Mapping[str, Any]]], CodecLMRecipe]:
    """Open the data and build what the recipe trains.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the tokenizers filled in.

    Raises:
        ValueError: If data, tokenizers and model do not fit together; the message names the flag that mends it.
    """
    if recipe.speech_tokenizer is None:
        raise ValueError(
            "the recipe names no codec; train one first (latentlm train recipes/..._codec.yaml --out RUN) and pass "
            "--speech_tokenizer RUN/model"
        )
    codec = SpeechCodec.from_pretrained(recipe.speech_tokenizer)
    opened = open_recipe_documents(recipe, speech_tokenizer=codec)
    recipe = replace(recipe, model=_fitted(recipe.model, opened.text_tokenizer, codec))
    with seeded_weights(recipe.trainer.seed):
        model = CodecLM(recipe.model)
    objective = CodecLMObjective(
        model,
        codec,
        opened.text_tokenizer,
        sampling=recipe.speech_generation,
        **objective_options(recipe, opened),
    )
    return objective, make_document_loader(opened.batches, recipe.trainer), recipe


def _fitted(config: CodecLMConfig, text_tokenizer: StoredTextTokenizer, codec: SpeechCodec) -> CodecLMConfig:
    """The model's config with what the tokenizers say; its own numbers stay, and are refused later if they differ."""
    return replace(
        config,
        num_text_ids=config.num_text_ids or text_tokenizer.num_ids,
        num_codes=config.num_codes or codec.num_codes,
        num_quantizers=config.num_quantizers or codec.num_quantizers,
        tokenizer_fingerprint=codec.fingerprint(),
    )
