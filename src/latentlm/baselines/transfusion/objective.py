"""Trains a Transfusion on documents of text and pictures: rows of pieces to packed pictures to losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from latentlm.baselines.transfusion.model import Transfusion
from latentlm.baselines.transfusion.pipeline import TransfusionPipeline, check_image_tokenizer
from latentlm.baselines.transfusion.sequence import MODALITY, PictureBatch, before_caption
from latentlm.generation.pipeline_folder import TEXT
from latentlm.generation.requests import LatentSamplingConfig, TextSamplingConfig
from latentlm.sequence import SequenceBuilder
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.objective import Counts
from latentlm.training.objectives.documents import DocumentObjective, document_of
from latentlm.training.optim import OptimConfig


class TransfusionObjective(DocumentObjective):
    """Next-token prediction on text, one diffusion per picture.

    Args:
        model: What is trained.
        tokenizer: Frozen; encodes pictures and decodes samples.
        text_tokenizer: Saved with the model.
        sampling: Of pictures, saved with the model.
        text_sampling: Of text, likewise.
        **options: Of `DocumentObjective`.

    Raises:
        ValueError: If the model was not built for these tokenizers.
    """

    kind = "transfusion"
    model: Transfusion
    tokenizer: ImageTokenizer

    def __init__(
        self,
        model: Transfusion,
        tokenizer: ImageTokenizer,
        text_tokenizer: StoredTextTokenizer,
        *,
        sampling: LatentSamplingConfig,
        text_sampling: TextSamplingConfig,
        optim: OptimConfig,
        **options: Any,
    ) -> None:
        check_image_tokenizer(model, tokenizer)
        super().__init__(model, tokenizer, optim=optim, **options)
        self.text_tokenizer = text_tokenizer
        self.sampling = sampling
        self.text_sampling = text_sampling
        self.builder = SequenceBuilder(model.config.vocabulary, [MODALITY], text_tokenizer)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the backbone's layers in the backward pass."""
        self.model.transformer.activation_checkpointing = True

    def encode(self, pictures: Tensor, noise_seed: int, keys: Tensor) -> Tensor:
        """Latents, freshly sampled from the tokenizer's posterior."""
        return self.tokenizer.sample_keyed(self.tokenizer.posterior(pictures), noise_seed, keys)

    def lay_out(
        self, rows: list[list[RawPiece]], tokens: Mapping[int, Sequence[Tensor]], noise_seed: int
    ) -> PictureBatch:
        """Packed sequences and their pictures."""
        documents = [[document_of(piece, tokens[piece.key]) for piece in row] for row in rows]
        packed = self.builder.collate(
            [[self.builder.build(document) for document in row] for row in documents],
            length=self.max_length,
            group_names=self.group_names,
        )
        marks = self.text_tokenizer.special_ids
        is_before_caption = [is_before for row in documents for doc in row for is_before in before_caption(doc, marks)]
        return PictureBatch.of(
            packed,
            latent_dim=self.model.config.image.latent_dim,
            is_before_caption=is_before_caption,
            noise_seed=noise_seed,
        ).to(self.device)

    def loss_counts(self, batch: PictureBatch) -> Counts:
        """See `Transfusion.loss_counts`."""
        return self.model.loss_counts(batch)

    def model_losses(self, batch: PictureBatch, totals: Counts | None) -> dict[str, Tensor]:
        """`lm` and `diffusion/image`, also by source; see `Transfusion.forward`.

        In evaluation mode text is scored after clean pictures, which is how the model reads when it is used; training
        scores it after the noised ones.
        """
        losses = self.model(batch, totals=totals)
        return losses if self.training else losses | self.model.text_losses(batch, totals=totals)

    def noised_text_losses(self, batch: PictureBatch, noise_level: float) -> dict[str, Tensor]:
        """Text after noised pictures, at their timestep: what training shows, at one level instead of all."""
        return self.model.text_losses(batch, noise_level=noise_level)

    def pipeline(self) -> TransfusionPipeline:
        """Model and tokenizers as users will hold them."""
        return TransfusionPipeline(
            self.model,
            {MODALITY: self.tokenizer, TEXT: self.text_tokenizer},
            {MODALITY: self.sampling, TEXT: self.text_sampling},
        )

    def sample_grid(self, *, seed: int) -> Tensor:
        """Pictures drawn after nothing at all."""
        return self.unprompted_pictures(seed=seed)
