"""Trains a VQ-MLLM on documents of text and pictures: next-token prediction of ids, codes among them.

Shapes: B batch, N codes of a picture, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig
from latentlm.baselines.vq_mllm.model import VQMLLM
from latentlm.baselines.vq_mllm.pipeline import VQMLLMPipeline, check_image_tokenizer
from latentlm.generation.pipeline_folder import TEXT
from latentlm.generation.requests import TextSamplingConfig
from latentlm.sequence import CodePart, PackedBatch, SequenceBuilder
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.objective import Counts
from latentlm.training.objectives.documents import DocumentObjective, document_of


class VQMLLMObjective(DocumentObjective):
    """Cross-entropy on packed documents whose pictures are codes.

    Args:
        model: What is trained.
        tokenizer: Frozen; encodes pictures and decodes samples.
        text_tokenizer: Saved with the model.
        sampling: Of codes, saved with the model.
        text_sampling: Of text, likewise.
        **options: Of `DocumentObjective`.

    Raises:
        ValueError: If the model was not built for these tokenizers.
    """

    kind = "vq_mllm"
    model: VQMLLM
    tokenizer: VQImageTokenizer

    def __init__(
        self,
        model: VQMLLM,
        tokenizer: VQImageTokenizer,
        text_tokenizer: StoredTextTokenizer,
        *,
        sampling: CodeSamplingConfig,
        text_sampling: TextSamplingConfig,
        **options: Any,
    ) -> None:
        check_image_tokenizer(model, tokenizer)
        super().__init__(model, tokenizer, **options)
        self.text_tokenizer = text_tokenizer
        self.sampling = sampling
        self.text_sampling = text_sampling
        self.builder = SequenceBuilder(model.config.vocabulary, (), text_tokenizer)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the backbone's layers in the backward pass."""
        self.model.transformer.activation_checkpointing = True

    def encode(self, pictures: Tensor, noise_seed: int, keys: Tensor) -> Tensor:
        """Codes [B, N] of pictures [B, C, H, W]; nothing about them is random."""
        return self.tokenizer.encode(pictures)

    def lay_out(
        self, rows: list[list[RawPiece]], tokens: Mapping[int, Sequence[Tensor]], noise_seed: int
    ) -> PackedBatch:
        """Packed sequences of ids."""
        sequences = [
            [self.builder.build(document_of(piece, tokens[piece.key], part_class=CodePart)) for piece in row]
            for row in rows
        ]
        return self.builder.collate(sequences, length=self.max_length, group_names=self.group_names).to(self.device)

    def loss_counts(self, batch: PackedBatch) -> Counts:
        """See `VQMLLM.loss_counts`."""
        return self.model.loss_counts(batch)

    def model_losses(self, batch: PackedBatch, totals: Counts | None) -> dict[str, Tensor]:
        """`lm` and `codes/image`, also by source; see `VQMLLM.forward`."""
        return self.model(batch, totals=totals)

    def noised_text_losses(self, batch: PackedBatch, noise_level: float) -> dict[str, Tensor]:
        """Codes have no levels of noise between right and wrong."""
        raise ValueError("the pictures of a VQ-MLLM are codes, to which no noise can be added")

    def pipeline(self) -> VQMLLMPipeline:
        """Model and tokenizers as users will hold them."""
        return VQMLLMPipeline(
            self.model,
            {"image": self.tokenizer, TEXT: self.text_tokenizer},
            {"image": self.sampling, TEXT: self.text_sampling},
        )

    def sample_grid(self, *, seed: int) -> Tensor | None:
        """Pictures drawn after nothing at all; None for a model whose pictures differ in size."""
        if self.model.config.says_size:
            return None
        return self.unprompted_pictures(seed=seed)
