"""Raw in, raw out: a VQ-MLLM together with its tokenizers of text and of pictures."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import torch

from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig
from latentlm.baselines.vq_mllm.generator import CodeGenerator
from latentlm.baselines.vq_mllm.model import VQMLLM
from latentlm.generation.document_pipeline import TEXT, DocumentPipeline
from latentlm.generation.image_pipeline import read_sampling, read_tokenizer, write_pipeline
from latentlm.generation.prompts import PromptEncoder
from latentlm.generation.requests import Event, GenerationRequest, TextSamplingConfig
from latentlm.pretrained import HubUpload, resolve_folder
from latentlm.sequence import SequenceBuilder
from latentlm.storage import refuse_escape
from latentlm.tokenizers.text import load_text_tokenizer
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
    expected = model.config.tokenizer_fingerprint
    if expected is not None and tokenizer.fingerprint() != expected:
        raise ValueError(
            f"this model was trained with another image tokenizer (fingerprint {expected[:12]}…, got "
            f"{tokenizer.fingerprint()[:12]}…); use the one in the model's own tokenizers/image folder"
        )


class VQMLLMPipeline(DocumentPipeline, HubUpload):
    """A trained model as people use it: text and pictures in any order to more of it.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: "image" and "text".
        sampling: Defaults of both, by the same names; absent ones are those of their classes.

    Raises:
        ValueError: If model, tokenizers and sampling do not belong together.
    """

    kind = VQMLLM.kind
    model: VQMLLM

    def __init__(
        self,
        model: VQMLLM,
        tokenizers: Mapping[str, Any],
        sampling: Mapping[str, TextSamplingConfig] | None = None,
    ) -> None:
        check_image_tokenizer(model, tokenizers["image"])
        self.model = model.eval()
        self.tokenizers = dict(tokenizers)
        self.sampling = {"image": CodeSamplingConfig(), TEXT: TextSamplingConfig(), **(sampling or {})}
        self.text_tokenizer = tokenizers[TEXT]
        self.builder = SequenceBuilder(model.config.vocabulary, (), self.text_tokenizer)
        self.prompts = PromptEncoder(tokenizers["image"], max_grid_side=model.config.vocabulary.max_grid_side or None)
        self._generator()  # refuses sampling that does not fit now, not when drawing

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> "VQMLLMPipeline":
        """Load a folder, or a repository of the hub.

        Args:
            source: Local folder or hub id.
            revision: Commit, branch or tag of a hub repository.
            local_files_only: Never touch the network.
            device: Where to put the weights.

        Raises:
            ValueError: If the folder is damaged, holds no pipeline, or its parts do not belong together.
        """
        folder = resolve_folder(source, revision=revision, local_files_only=local_files_only)
        model = VQMLLM.from_folder(folder, device=device)
        refuse_escape(folder / "tokenizers" / TEXT, folder)
        tokenizers = {
            "image": read_tokenizer(folder, "image", device=device),
            TEXT: load_text_tokenizer(folder / "tokenizers" / TEXT),
        }
        return cls(model, tokenizers, read_sampling(folder, {"image": CodeSamplingConfig, TEXT: TextSamplingConfig}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `from_pretrained` needs; see `write_pipeline`."""
        write_pipeline(Path(folder), self.model, self.tokenizers, self.sampling)

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
