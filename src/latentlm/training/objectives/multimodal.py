"""Trains a LatentLM on documents of text and pictures (paper Section 3.2): next-token prediction and diffusion."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlm.generation.pipeline import LatentLMPipeline, check_tokenizers
from latentlm.generation.pipeline_folder import TEXT
from latentlm.generation.requests import LatentSamplingConfig, TextSamplingConfig
from latentlm.models.latentlm import NOISE_STREAM, LatentLM, LatentLMConfig
from latentlm.nn.keyed_noise import keyed_normal
from latentlm.sequence import PackedBatch, SequenceBuilder
from latentlm.tokenizers.base import LatentTokenizer, Posterior
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.initial_weights import fitted_to_checkpoint, load_initial_weights
from latentlm.training.lora import LoraConfig, add_lora, freeze, merge_lora
from latentlm.training.objective import Counts
from latentlm.training.objectives.documents import (
    DocumentObjective,
    DocumentRecipe,
    document_of,
    make_document_loader,
    objective_options,
    open_recipe_documents,
    open_tokenizers,
)
from latentlm.training.optim import OptimConfig
from latentlm.training.random_state import seeded_weights

_TOKENIZER_FLAGS = {"image": "--tokenizer", "speech": "--speech_tokenizer"}


@dataclass(frozen=True, kw_only=True)
class MultimodalRecipe(DocumentRecipe):
    """A LatentLM that reads and writes text, pictures and speech in any order."""

    model: LatentLMConfig
    """The model. `vocabulary.num_text_ids: 0` takes the number of ids from the text tokenizer."""
    generation: LatentSamplingConfig = field(default_factory=LatentSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
    speech_tokenizer: str | None = None
    """Folder of the trained speech tokenizer (its run's `model` folder). null for models without speech."""
    speech_generation: LatentSamplingConfig = field(default_factory=LatentSamplingConfig)
    """How speech is sampled; likewise. The paper: cfg_scale 4, 5 solver steps."""
    text_generation: TextSamplingConfig = field(default_factory=TextSamplingConfig)
    """How text is sampled; likewise."""
    init_from: str | None = None
    """What to start from: the `model` folder of a run of documents with the same tokenizers, or the folder of a Llama
    or Qwen checkpoint in Hugging Face format, whose sizes then replace those of model.transformer."""
    lora: LoraConfig | None = None
    """Train low-rank changes of the backbone instead of its weights; they are folded in when the model is saved."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that are not trained, by patterns such as "transformer.*"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.lm_head:
            raise ValueError("model.lm_head: false predicts no text; a model of documents needs a softmax head")
        if self.lora is not None and self.freeze:
            raise ValueError("lora freezes the backbone by itself; leave freeze out")


class MultimodalObjective(DocumentObjective):
    """Losses of Section 2.2 on packed documents.

    Args:
        model: What is trained.
        tokenizer: Frozen; encodes pictures and decodes samples. None for a model without pictures.
        text_tokenizer: Saved with the model.
        speech_tokenizer: Frozen; samples and decodes speech. None for a model without.
        sampling: Of pictures, saved with the model.
        speech_sampling: Of speech, likewise.
        text_sampling: Of text, likewise.
        **options: Of `DocumentObjective`.

    Raises:
        ValueError: If the model was not built for these tokenizers.
    """

    kind = "multimodal"
    model: LatentLM
    tokenizer: ImageTokenizer | None

    def __init__(
        self,
        model: LatentLM,
        tokenizer: ImageTokenizer | None,
        text_tokenizer: StoredTextTokenizer,
        *,
        sampling: LatentSamplingConfig,
        text_sampling: TextSamplingConfig,
        optim: OptimConfig,
        speech_tokenizer: SpeechTokenizer | None = None,
        speech_sampling: LatentSamplingConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, optim=optim, **options)
        self.text_tokenizer = text_tokenizer
        self.speech_tokenizer = None
        if speech_tokenizer is not None:
            self.speech_tokenizer = speech_tokenizer.requires_grad_(False).eval()
            self.frozen_children = (*self.frozen_children, "speech_tokenizer")
        check_tokenizers(model, self.latent_tokenizers)
        self.speech_sampling = speech_sampling or LatentSamplingConfig()
        self.sampling = sampling
        self.text_sampling = text_sampling
        self.is_adapted = False
        self.builder = SequenceBuilder(model.config.vocabulary, list(model.config.modalities), text_tokenizer)

    @property
    def latent_tokenizers(self) -> dict[str, Any]:
        """By modality."""
        tokenizers = {"image": self.tokenizer, "speech": self.speech_tokenizer}
        return {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer is not None}

    def adapt(self, config: LoraConfig) -> None:
        """Train low-rank changes of the backbone instead of its weights."""
        add_lora(self.model, config)
        self.is_adapted = True

    def enable_activation_checkpointing(self) -> None:
        """Recompute the backbone's layers in the backward pass."""
        self.model.transformer.activation_checkpointing = True

    def encode(self, pictures: Tensor, noise_seed: int, keys: Tensor) -> Tensor:
        """Latents, freshly sampled from the tokenizer's posterior."""
        assert self.tokenizer is not None
        return self.tokenizer.sample_keyed(self.tokenizer.posterior(pictures), noise_seed, keys)

    def sample_stored(self, modality: str, posterior: Posterior, noise_seed: int, keys: Tensor) -> Tensor:
        """Latents, freshly sampled from a stored posterior."""
        if modality not in self.latent_tokenizers:
            return super().sample_stored(modality, posterior, noise_seed, keys)
        return self.latent_tokenizers[modality].sample_keyed(posterior, noise_seed, keys)

    def lay_out(
        self, rows: list[list[RawPiece]], tokens: Mapping[int, Sequence[Tensor]], noise_seed: int
    ) -> tuple[PackedBatch, int]:
        """Packed sequences, and the step's noise seed."""
        sequences = [[self.builder.build(document_of(piece, tokens[piece.key])) for piece in row] for row in rows]
        packed = self.builder.collate(sequences, length=self.max_length, group_names=self.group_names)
        return packed.to(self.device), noise_seed

    def loss_counts(self, batch: tuple[PackedBatch, int]) -> Counts:
        """See `LatentLM.loss_counts`."""
        return self.model.loss_counts(batch[0])

    def model_losses(self, batch: tuple[PackedBatch, int], totals: Counts | None) -> dict[str, Tensor]:
        """`lm`, `continue/image` and `diffusion/image`, also by source; see `LatentLM.forward`."""
        packed, noise_seed = batch
        return self.model(packed, noise_seed=noise_seed, totals=totals)

    def noised_text_losses(self, batch: tuple[PackedBatch, int], noise_level: float) -> dict[str, Tensor]:
        """Text after latents under more noise than the tokenizer's own, which no training document shows."""
        packed, noise_seed = batch
        latents = {name: self._noised(name, packed, noise_seed, noise_level) for name in packed.latents}
        losses = self.model(replace(packed, latents=latents), noise_seed=noise_seed)
        return {name: loss for name, loss in losses.items() if name.split("/")[0] == "lm"}

    def _noised(self, name: str, packed: PackedBatch, noise_seed: int, noise_level: float) -> Tensor:
        latents, process = packed.latents[name].float(), self.model.processes[name]
        timestep = torch.full(latents.shape[:1], process.timestep_at(noise_level), device=latents.device)
        noise = keyed_normal(noise_seed, packed.latent_keys[name], latents.shape[1:], stream=NOISE_STREAM)
        return process.add_noise(latents, noise, timestep) if noise_level else latents

    def pipeline(self) -> LatentLMPipeline:
        """Model and tokenizers as users will hold them."""
        model = merge_lora(self.model) if self.is_adapted else self.model
        tokenizers = {TEXT: self.text_tokenizer, **self.latent_tokenizers}
        sampling = {TEXT: self.text_sampling, "image": self.sampling, "speech": self.speech_sampling}
        return LatentLMPipeline(model, tokenizers, {name: sampling[name] for name in tokenizers})

    def sample_grid(self, *, seed: int) -> Tensor | None:
        """Pictures drawn after nothing at all; None for a model of text."""
        if self.tokenizer is None or self.model.config.modalities["image"].says_size:
            return None
        return self.unprompted_pictures(seed=seed)


def build_multimodal(
    recipe: MultimodalRecipe,
) -> tuple[MultimodalObjective, Callable[[int], Iterator[Mapping[str, Any]]], MultimodalRecipe]:
    """Open the data and build what the recipe trains.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the data filled in.

    Raises:
        ValueError: If data, tokenizers and model do not fit together; the message names the flag that mends it.
    """
    # Whatever does not fit together is refused before the documents are counted, which takes minutes.
    if recipe.init_from is not None:
        recipe = replace(recipe, model=fitted_to_checkpoint(recipe.model, Path(recipe.init_from)))
    text_tokenizer, tokenizer = open_tokenizers(recipe)
    if tokenizer is not None and not isinstance(tokenizer, ImageTokenizer):
        raise ValueError(f"LatentLM models latents, but the tokenizer in {recipe.tokenizer} is a '{tokenizer.kind}'")
    speech_tokenizer = None
    if recipe.speech_tokenizer is not None:
        speech_tokenizer = SpeechTokenizer.from_pretrained(recipe.speech_tokenizer)
    recipe = replace(recipe, model=_fitted(recipe, text_tokenizer, {"image": tokenizer, "speech": speech_tokenizer}))
    image = recipe.model.modalities.get("image")
    says_size = image is not None and image.says_size
    opened = open_recipe_documents(
        recipe,
        tokenizers=(text_tokenizer, tokenizer),
        max_grid_side=recipe.model.vocabulary.max_grid_side if says_size else None,
        speech_tokenizer=speech_tokenizer,
    )
    with seeded_weights(recipe.trainer.seed):
        model = LatentLM(recipe.model)
        if recipe.init_from is not None:
            eos_ids = load_initial_weights(model, Path(recipe.init_from), text_tokenizer)
            if not recipe.text_generation.eos_ids:
                recipe = replace(recipe, text_generation=replace(recipe.text_generation, eos_ids=eos_ids))
        objective = MultimodalObjective(
            model,
            tokenizer,
            text_tokenizer,
            speech_tokenizer=speech_tokenizer,
            sampling=recipe.generation,
            speech_sampling=recipe.speech_generation,
            text_sampling=recipe.text_generation,
            **objective_options(recipe, opened),
        )
        if recipe.lora is not None:
            objective.adapt(recipe.lora)
    if recipe.freeze:
        freeze(model, recipe.freeze)
    return objective, make_document_loader(opened.batches, recipe.trainer), recipe


def _fitted(
    recipe: MultimodalRecipe, text_tokenizer: StoredTextTokenizer, tokenizers: Mapping[str, LatentTokenizer | None]
) -> LatentLMConfig:
    """The model's config with what the tokenizers say."""
    config, vocabulary = recipe.model, recipe.model.vocabulary
    if vocabulary.num_text_ids == 0:
        vocabulary = replace(vocabulary, num_text_ids=text_tokenizer.num_ids)
    modalities = dict(config.modalities)
    for name, tokenizer in tokenizers.items():
        flag = _TOKENIZER_FLAGS[name]
        if (name in modalities) != (tokenizer is not None):
            raise ValueError(
                f"the model has the modality '{name}' but the recipe names no tokenizer of it; train one first "
                f"(latentlm train recipes/..._tokenizer.yaml --out RUN) and pass {flag} RUN/model"
                if tokenizer is None
                else f"the recipe names a tokenizer ({flag}), but the model has no modality '{name}'"
            )
        if tokenizer is None:
            continue
        modality = modalities[name]
        if modality.latent_dim != tokenizer.latent_dim:
            raise ValueError(
                f"the tokenizer gives latents of {tokenizer.latent_dim} dimensions but the model was configured for "
                f"{modality.latent_dim}; pass --model.modalities.{name}.latent_dim {tokenizer.latent_dim}"
            )
        modalities[name] = replace(modality, tokenizer_fingerprint=tokenizer.fingerprint())
    return replace(config, vocabulary=vocabulary, modalities=modalities)
