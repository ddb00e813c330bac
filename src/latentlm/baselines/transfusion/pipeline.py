"""Raw in, raw out: a Transfusion together with the tokenizers it was trained with."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from latentlm.baselines.transfusion.generator import TransfusionGenerator
from latentlm.baselines.transfusion.model import Transfusion
from latentlm.baselines.transfusion.sequence import MODALITY
from latentlm.generation.document_pipeline import DocumentPipeline
from latentlm.generation.pipeline_folder import TEXT, StoredPipeline
from latentlm.generation.prompts import PromptEncoder
from latentlm.generation.requests import Event, GenerationRequest, LatentSamplingConfig, TextSamplingConfig
from latentlm.sequence import SequenceBuilder
from latentlm.tokenizers.fingerprint import refuse_other_tokenizer
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import StoredTextTokenizer


class TransfusionPipeline(DocumentPipeline, StoredPipeline):
    """A trained model as people use it: any mix of text and pictures to more of it.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: "image" and "text".
        sampling: Defaults, `LatentSamplingConfig` under "image" and `TextSamplingConfig` under "text".

    Raises:
        ValueError: If model, tokenizers and sampling do not belong together.
    """

    ends_pictures_itself = False
    kind = Transfusion.kind
    model_class = Transfusion
    tokenizer_names = (MODALITY, TEXT)
    sampling_classes = MappingProxyType({MODALITY: LatentSamplingConfig, TEXT: TextSamplingConfig})
    model: Transfusion

    def __init__(
        self, model: Transfusion, tokenizers: Mapping[str, Any], sampling: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(model, tokenizers, sampling)
        check_image_tokenizer(model, self.tokenizers[MODALITY])
        self.text_tokenizer: StoredTextTokenizer = self.tokenizers[TEXT]
        self.builder = SequenceBuilder(model.config.vocabulary, [MODALITY], self.text_tokenizer)
        self.prompts = PromptEncoder(self.tokenizers[MODALITY])
        self._generator(self.sampling[MODALITY])  # refuses sampling that does not fit now, not when drawing

    def events(
        self,
        requests: SequenceOf[GenerationRequest],
        *,
        num_inference_steps: int | None = None,
        solver: str | None = None,
    ) -> Iterator[Event]:
        """Answer requests as one batch; None takes the model's own steps and solver."""
        changes = {"num_inference_steps": num_inference_steps, "name": solver}
        changes = {name: value for name, value in changes.items() if value is not None}
        sampling: LatentSamplingConfig = self.sampling[MODALITY]
        return self._generator(replace(sampling, solver=replace(sampling.solver, **changes))).stream(requests)

    def _generator(self, sampling: LatentSamplingConfig) -> TransfusionGenerator:
        tokenizer: ImageTokenizer = self.tokenizers[MODALITY]
        rows, columns = tokenizer.grid(tokenizer.config.image_size, tokenizer.config.image_size)
        return TransfusionGenerator(self.model, self.builder, sampling, num_latents=rows * columns)


def check_image_tokenizer(model: Transfusion, tokenizer: Any) -> None:
    """Refuse a tokenizer of pictures that the model was not trained with.

    Raises:
        ValueError: If it gives no latents, others than the model takes, or has another fingerprint.
    """
    image = model.config.image
    if not isinstance(tokenizer, ImageTokenizer):
        raise ValueError(f"Transfusion diffuses latents, but the tokenizer of pictures is a '{tokenizer.kind}'")
    if tokenizer.latent_dim != image.latent_dim:
        raise ValueError(
            f"the tokenizer gives latents of {tokenizer.latent_dim} dimensions but the model was built for "
            f"latent_dim={image.latent_dim}; was it trained with another tokenizer?"
        )
    refuse_other_tokenizer(tokenizer, image.tokenizer_fingerprint, name="image")
