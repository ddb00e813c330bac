"""Raw in, raw out: a Transfusion together with the tokenizers it was trained with."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from latentlm.baselines.transfusion.generator import TransfusionGenerator
from latentlm.baselines.transfusion.model import Transfusion
from latentlm.baselines.transfusion.sequence import MODALITY
from latentlm.generation.document_pipeline import TEXT, DocumentPipeline
from latentlm.generation.image_pipeline import read_sampling, read_tokenizer, write_pipeline
from latentlm.generation.prompts import PromptEncoder
from latentlm.generation.requests import Event, GenerationRequest, LatentSamplingConfig, TextSamplingConfig
from latentlm.pretrained import HubUpload, resolve_folder
from latentlm.sequence import SequenceBuilder
from latentlm.storage import refuse_escape
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import StoredTextTokenizer, load_text_tokenizer


class TransfusionPipeline(HubUpload, DocumentPipeline):
    """A trained model as people use it: any mix of text and pictures to more of it.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: "image" and "text".
        sampling: Defaults, `LatentSamplingConfig` under "image" and `TextSamplingConfig` under "text".

    Raises:
        ValueError: If model, tokenizers and sampling do not belong together.
    """

    kind = Transfusion.kind
    model: Transfusion

    def __init__(
        self, model: Transfusion, tokenizers: Mapping[str, Any], sampling: Mapping[str, Any] | None = None
    ) -> None:
        if missing := sorted({MODALITY, TEXT} - tokenizers.keys()):
            raise ValueError(f"a Transfusion needs tokenizers of text and pictures; none was given of {missing[0]}")
        self.model = model.eval()
        self.tokenizers = dict(tokenizers)
        self.sampling = {MODALITY: LatentSamplingConfig(), TEXT: TextSamplingConfig()} | dict(sampling or {})
        check_image_tokenizer(model, self.tokenizers[MODALITY])
        self.text_tokenizer: StoredTextTokenizer = self.tokenizers[TEXT]
        self.builder = SequenceBuilder(model.config.vocabulary, [MODALITY], self.text_tokenizer)
        self.prompts = PromptEncoder(self.tokenizers[MODALITY])
        self._generator(self.sampling[MODALITY])  # refuses sampling that does not fit now, not when drawing

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> "TransfusionPipeline":
        """Load a folder, or a repository of the hub.

        Args:
            source: Local folder or hub id.
            revision: Commit, branch or tag of a hub repository.
            local_files_only: Never touch the network.
            device: Where to put the weights.

        Raises:
            ValueError: If the folder is damaged, holds no Transfusion, or its parts do not belong together.
        """
        folder = resolve_folder(source, revision=revision, local_files_only=local_files_only)
        model = Transfusion.from_folder(folder, device=device)
        text_folder = folder / "tokenizers" / TEXT
        if not text_folder.is_dir():
            raise ValueError(f"{folder} holds a model without its text tokenizer: there is no tokenizers/{TEXT}")
        refuse_escape(text_folder, folder)
        tokenizers = {
            MODALITY: read_tokenizer(folder, MODALITY, device=device),
            TEXT: load_text_tokenizer(text_folder),
        }
        return cls(model, tokenizers, read_sampling(folder, {MODALITY: LatentSamplingConfig, TEXT: TextSamplingConfig}))

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
    if image.tokenizer_fingerprint is not None and tokenizer.fingerprint() != image.tokenizer_fingerprint:
        raise ValueError(
            f"this model was trained with another image tokenizer (fingerprint {image.tokenizer_fingerprint[:12]}…, "
            f"got {tokenizer.fingerprint()[:12]}…); use the one in the model's own tokenizers/image folder"
        )
