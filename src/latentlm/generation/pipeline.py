"""Raw in, raw out: a LatentLM together with the tokenizers it was trained with."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.diffusion.solvers import make_solver
from latentlm.generation.document_pipeline import DocumentPipeline
from latentlm.generation.generator import Generator
from latentlm.generation.image_pipeline import ImagePipeline
from latentlm.generation.pipeline_folder import TEXT, read_label_names, read_sampling, read_tokenizer
from latentlm.generation.prompts import PromptEncoder
from latentlm.generation.requests import (
    Event,
    GenerationRequest,
    LatentSamplingConfig,
    LatentSpan,
    TextSamplingConfig,
)
from latentlm.models.cost import latentlm_flops
from latentlm.models.latentlm import LatentLM
from latentlm.nn.flops import ImageFlops
from latentlm.pretrained import resolve_folder
from latentlm.sequence import Document, LabelPart, LatentPart, SequenceBuilder
from latentlm.storage import refuse_escape
from latentlm.tokenizers.base import LatentTokenizer
from latentlm.tokenizers.fingerprint import refuse_other_tokenizer
from latentlm.tokenizers.text import ByteTokenizer, StoredTextTokenizer, load_text_tokenizer


def check_tokenizers(model: LatentLM, tokenizers: Mapping[str, Any]) -> None:
    """Refuse tokenizers that the model was not trained with.

    Raises:
        ValueError: If one is missing, has another latent_dim or another fingerprint.
    """
    for name, modality in model.config.modalities.items():
        if name not in tokenizers:
            raise ValueError(f"the model draws '{name}' latents but no tokenizer was given to decode them")
        tokenizer = tokenizers[name]
        if tokenizer.latent_dim != modality.latent_dim:
            raise ValueError(
                f"the {name} tokenizer gives latents of {tokenizer.latent_dim} dimensions but the model was built for "
                f"latent_dim={modality.latent_dim}; was it trained with another tokenizer?"
            )
        refuse_other_tokenizer(tokenizer, modality.tokenizer_fingerprint, name=name)


class LatentLMPipeline(ImagePipeline, DocumentPipeline):
    """A trained model as people use it: labels to pictures, or any mix of text and pictures to more of it.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: Latent tokenizers by modality, and "text" for a model with text (None given: bytes).
        sampling: Defaults of every modality, and of "text".
        label_names: Name of every class, for people; may be empty.

    Raises:
        ValueError: If model, tokenizers, sampling and label names do not belong together.
    """

    kind = LatentLM.kind
    steps_field = "solver.num_inference_steps"
    model: LatentLM

    def __init__(
        self,
        model: LatentLM,
        tokenizers: Mapping[str, Any],
        sampling: Mapping[str, LatentSamplingConfig | TextSamplingConfig] | None = None,
        *,
        label_names: SequenceOf[str] = (),
    ) -> None:
        check_tokenizers(model, tokenizers)
        vocabulary = model.config.vocabulary
        if vocabulary.num_text_ids and TEXT not in tokenizers:
            tokenizers = {**tokenizers, TEXT: ByteTokenizer()}
        super().__init__(model, tokenizers, sampling or {}, label_names=label_names)
        self.text_tokenizer: StoredTextTokenizer | None = self.tokenizers.get(TEXT)
        self.builder = SequenceBuilder(vocabulary, list(model.config.modalities), self.text_tokenizer)
        # Refuses sampling that does not fit now, not when drawing; fills in what was not given.
        text = {TEXT: self.sampling.pop(TEXT, TextSamplingConfig())} if vocabulary.num_text_ids else {}
        self.sampling: dict[str, Any] = Generator(self.model, self.builder, self.sampling).sampling | text
        image = model.config.modalities.get("image")
        self.prompts = PromptEncoder(
            None if image is None else self.tokenizers["image"],
            speech_tokenizer=self.tokenizers.get("speech"),
            max_grid_side=vocabulary.max_grid_side if image is not None and image.says_size else None,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> "LatentLMPipeline":
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
        model = LatentLM.from_folder(folder, device=device)
        modalities = model.config.modalities
        tokenizers: dict[str, Any] = {name: _read_latent_tokenizer(folder, name, device) for name in modalities}
        classes: dict[str, type] = dict.fromkeys(modalities, LatentSamplingConfig)
        if model.config.vocabulary.num_text_ids:
            classes[TEXT] = TextSamplingConfig
            if (folder / "tokenizers" / TEXT).is_dir():
                refuse_escape(folder / "tokenizers" / TEXT, folder)
                tokenizers[TEXT] = load_text_tokenizer(folder / "tokenizers" / TEXT)
        return cls(model, tokenizers, read_sampling(folder, classes), label_names=read_label_names(folder))

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for."""
        return self.model.config.vocabulary.num_classes

    def draw_tokens(
        self,
        labels: SequenceOf[int | None],
        seeds: SequenceOf[int],
        sampling: LatentSamplingConfig,
        grid: tuple[int, int],
    ) -> Tensor:
        """Latents [B, N, C] of one picture per label; see `generate_images`."""
        prompts = [Document((LabelPart(label),)) for label in labels]
        return self._draw(prompts, [(LatentSpan("image", grid[0] * grid[1]),)] * len(prompts), seeds, sampling)[:, 0]

    def continue_pictures(
        self,
        labels: SequenceOf[int],
        given: Float[Tensor, "B K N C"] | None,
        num_pictures: int,
        *,
        seeds: SequenceOf[int],
        sampling: LatentSamplingConfig,
    ) -> Float[Tensor, "B P N C"]:
        """Further pictures of documents of one class, as models with `pictures_per_document` learned them.

        Args:
            labels: Class of each document, said before each of its pictures.
            given: Latents of unit variance of the pictures that stand there already; None for none.
            num_pictures: P, to be drawn, of the training size.
            seeds: One per document.
            sampling: Solver and steps; without guidance, whose unconditional stream would know no past.

        Raises:
            ValueError: If a label does not exist, no picture is asked for, or guidance is.
        """
        if num_pictures < 1:
            raise ValueError(f"num_pictures is {num_pictures}; ask for one at least")
        if sampling.cfg_scale != 1:
            raise ValueError("the unconditional stream does not see earlier pictures: continue with cfg_scale 1")
        size = self.image_tokenizer.config.image_size
        rows, columns = self.image_tokenizer.grid(size, size)
        prompts, spans = [], []
        for number, label in enumerate(labels):
            pictures = [] if given is None else [LatentPart("image", picture) for picture in given[number]]
            told = LabelPart(label)
            prompts.append(Document((*(part for picture in pictures for part in (told, picture)), told)))
            further = LatentSpan("image", rows * columns, label=label)
            spans.append((replace(further, label=None), *[further] * (num_pictures - 1)))
        return self._draw(prompts, spans, seeds, sampling)

    def _draw(
        self,
        prompts: SequenceOf[Document],
        spans: SequenceOf[tuple[LatentSpan, ...]],
        seeds: SequenceOf[int],
        sampling: LatentSamplingConfig,
    ) -> Float[Tensor, "B P N C"]:
        """Spans of one length and number behind prompts."""
        requests = [
            # The negative prompt is what training puts in the place of a dropped label, with and without switch tokens.
            GenerationRequest(prompt=prompt, negative_prompt=Document((LabelPart(None),)), spans=of_one, seed=seed)
            for prompt, of_one, seed in zip(prompts, spans, seeds, strict=True)
        ]
        documents = self._generator({"image": sampling}).generate(requests)
        return torch.stack(
            [torch.stack([p.latents for p in document.parts if isinstance(p, LatentPart)]) for document in documents]
        )

    def _generator(self, changes: Mapping[str, LatentSamplingConfig] | None = None) -> Generator:
        latent = {name: self.sampling[name] for name in self.model.config.modalities}
        return Generator(self.model, self.builder, latent | dict(changes or {}))

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
        sampling = {name: self.sampling[name] for name in self.model.config.modalities}
        return self._generator(
            {name: replace(of_one, solver=replace(of_one.solver, **changes)) for name, of_one in sampling.items()}
        ).stream(requests)

    def flops(self, sampling: LatentSamplingConfig | None = None) -> ImageFlops:
        """What one picture of the training size costs; None as sampling takes the defaults."""
        chosen: LatentSamplingConfig = self.sampling["image"] if sampling is None else sampling
        size = self.image_tokenizer.config.image_size
        rows, columns = self.image_tokenizer.grid(size, size)
        solver = make_solver(self.model.processes["image"], chosen.solver)
        return latentlm_flops(
            self.model,
            num_latents=rows * columns,
            num_evaluations=solver.num_evaluations,
            guided=chosen.cfg_scale != 1,
        ).per_image


def _read_latent_tokenizer(root: Path, name: str, device: str | torch.device) -> LatentTokenizer:
    tokenizer = read_tokenizer(root, name, device=device)
    if not isinstance(tokenizer, LatentTokenizer):
        raise ValueError(f"{root} holds a model of latents, but its {name} tokenizer is a '{tokenizer.kind}'")
    return tokenizer
