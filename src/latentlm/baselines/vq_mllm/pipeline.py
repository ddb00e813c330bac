"""Raw in, raw out: a VQ-MLLM together with its tokenizers of text and of pictures."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType
from typing import Any

from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig
from latentlm.baselines.vq_mllm.generator import CodeGenerator
from latentlm.baselines.vq_mllm.model import VQMLLM
from latentlm.generation.document_pipeline import DocumentPipeline
from latentlm.generation.pipeline_folder import TEXT, StoredPipeline
from latentlm.generation.prompts import PromptEncoder
from latentlm.generation.requests import Event, GenerationRequest, TextSamplingConfig
from latentlm.sequence import SequenceBuilder
from latentlm.tokenizers.fingerprint import refuse_other_tokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer


def check_image_tokenizer(model: VQMLLM, tokenizer: Any) -> None:
    """Refuse an image tokenizer that the model was not trained with.

    Raises:
        ValueError: If it gives no codes, another number of them, or has another fingerprint.
    """
    if not isinstance(tokenizer, VQImageTokenizer):
        raise ValueError(
            f"a '{model.kind}' models codes, but the image tokenizer is a '{tokenizer.kind}', which gives latents"
        )
    num_codes = model.config.vocabulary.num_codes
    if tokenizer.num_codes != num_codes:
        raise ValueError(
            f"the image tokenizer has {tokenizer.num_codes} codes but the model was built for num_codes={num_codes}; "
            "was it trained with another tokenizer?"
        )
    refuse_other_tokenizer(tokenizer, model.config.tokenizer_fingerprint, name="image")


class VQMLLMPipeline(DocumentPipeline, StoredPipeline):
    """A trained model as people use it: text and pictures in any order to more of it.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: "image" and "text".
        sampling: Defaults of both, by the same names; absent ones are those of their classes.

    Raises:
        ValueError: If model, tokenizers and sampling do not belong together.
    """

    kind = VQMLLM.kind
    model_class = VQMLLM
    tokenizer_names = ("image", TEXT)
    sampling_classes = MappingProxyType({"image": CodeSamplingConfig, TEXT: TextSamplingConfig})
    model: VQMLLM

    def __init__(
        self,
        model: VQMLLM,
        tokenizers: Mapping[str, Any],
        sampling: Mapping[str, TextSamplingConfig] | None = None,
    ) -> None:
        super().__init__(model, tokenizers, sampling)
        check_image_tokenizer(model, tokenizers["image"])
        self.text_tokenizer = tokenizers[TEXT]
        self.builder = SequenceBuilder(model.config.vocabulary, (), self.text_tokenizer)
        self.prompts = PromptEncoder(tokenizers["image"], max_grid_side=model.config.vocabulary.max_grid_side or None)
        self._generator()  # refuses sampling that does not fit now, not when drawing

    def events(
        self,
        requests: SequenceOf[GenerationRequest],
        *,
        num_inference_steps: int | None = None,
        solver: str | None = None,
    ) -> Iterator[Event]:
        """Answer requests as one batch.

        Raises:
            ValueError: If steps or a solver are given: codes are sampled, not denoised.
        """
        if num_inference_steps is not None or solver is not None:
            raise ValueError(f"a '{self.kind}' samples codes and denoises nothing: leave steps and solver out")
        return self._generator().stream(requests)

    def _generator(self) -> CodeGenerator:
        return CodeGenerator(self.model, self.builder, self.sampling["image"])
