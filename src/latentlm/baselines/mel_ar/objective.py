"""Trains MELLE on documents of text and recordings (Meng et al. 2024, Section 3.3).

    pieces ─text ids, normalised frames in groups of r▶ packed rows ─MelAR▶ losses
    total = coarse + refined + lambda · divergence + beta · flux + gamma · stop     (Eq. 5)

Sources, packing and noise keys are those of every model of documents; rows are laid out in groups but were planned in
frames, so that a row of `max_length` frames and ids becomes a shorter one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentlm.baselines.mel_ar.features import complete_groups
from latentlm.baselines.mel_ar.generator import MelSamplingConfig
from latentlm.baselines.mel_ar.model import SPEECH, MelAR
from latentlm.baselines.mel_ar.pipeline import MelARPipeline, check_vocoder
from latentlm.baselines.mel_ar.vocoder import MelVocoder
from latentlm.generation.pipeline_folder import TEXT
from latentlm.sequence import Document, PackedBatch, SequenceBuilder
from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.objective import Counts
from latentlm.training.objectives.documents import DocumentObjective, document_of


@dataclass(frozen=True, kw_only=True)
class MelARLossConfig:
    """Weights beside the regression losses, which have 1 (its Appendix A.3)."""

    divergence_weight: float = 0.1
    """lambda."""
    divergence_start_step: int = 0
    """lambda is 0 before: the paper's first 10,000 of 400,000 steps."""
    flux_weight: float = 0.5
    """beta."""
    stop_weight: float = 1.0
    """gamma."""

    def __post_init__(self) -> None:
        if min(self.divergence_weight, self.divergence_start_step, self.flux_weight, self.stop_weight) < 0:
            raise ValueError("the weights of losses, and the step at which one begins, cannot be negative")


class MelARObjective(DocumentObjective):
    """The losses of MELLE on packed documents.

    Args:
        model: What is trained.
        vocoder: Frozen; normalises frames and gives samples a sound.
        text_tokenizer: Saved with the model.
        losses: Their weights.
        sampling: Saved with the model as its default.
        **options: Of `DocumentObjective`.

    Raises:
        ValueError: If the model was not built for this vocoder.
    """

    kind = "mel_ar"
    model: MelAR

    def __init__(
        self,
        model: MelAR,
        vocoder: MelVocoder,
        text_tokenizer: StoredTextTokenizer,
        *,
        losses: MelARLossConfig,
        sampling: MelSamplingConfig,
        **options: Any,
    ) -> None:
        check_vocoder(model, vocoder)
        super().__init__(model, None, **options)
        self.vocoder = vocoder.requires_grad_(False).eval()
        self.frozen_children = (*self.frozen_children, "vocoder")
        self.text_tokenizer = text_tokenizer
        self.loss_config = losses
        self.sampling = sampling
        self.builder = SequenceBuilder(model.config.vocabulary, (SPEECH,), text_tokenizer)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the backbone's layers in the backward pass."""
        self.model.transformer.activation_checkpointing = True

    def encode(self, pictures: Tensor, noise_seed: int, keys: Tensor) -> Tensor:
        """There are no pictures to encode.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a 'mel_ar' reads no pictures")

    def sample_stored(self, modality: str, posterior: Posterior, noise_seed: int, keys: Tensor) -> Tensor:
        """Frames of unit variance; nothing about them is random."""
        return self.vocoder.statistics.normalize(posterior.mean)

    def lay_out(
        self, rows: list[list[RawPiece]], tokens: Mapping[int, Sequence[Tensor]], noise_seed: int
    ) -> tuple[PackedBatch, int]:
        """Packed sequences, and the step's noise seed."""
        sequences = [[self.builder.build(self._document(piece, tokens[piece.key])) for piece in row] for row in rows]
        return self.builder.collate(sequences, group_names=self.group_names).to(self.device), noise_seed

    def _document(self, piece: RawPiece, frames: Sequence[Tensor]) -> Document:
        reduction_factor = self.model.config.reduction_factor
        return document_of(piece, [complete_groups(of_clip, reduction_factor) for of_clip in frames])

    def loss_counts(self, batch: tuple[PackedBatch, int]) -> Counts:
        """See `MelAR.loss_counts`."""
        return self.model.loss_counts(batch[0])

    def model_losses(self, batch: tuple[PackedBatch, int], totals: Counts | None) -> dict[str, Tensor]:
        """The losses of `MelAR.forward`, and their sum as after `divergence_start_step`."""
        packed, noise_seed = batch
        return self._with_total(
            self.model(packed, noise_seed=noise_seed, totals=totals), self.loss_config.divergence_weight
        )

    def losses(self, batch: tuple[PackedBatch, int], *, step: int, totals: Counts) -> dict[str, dict[str, Tensor]]:
        """The same, the divergence counting from its first step on."""
        packed, noise_seed = batch
        has_begun = step >= self.loss_config.divergence_start_step
        named = self.model(packed, noise_seed=noise_seed, totals=totals)
        return {"model": self._with_total(named, self.loss_config.divergence_weight if has_begun else 0.0)}

    def _with_total(self, losses: dict[str, Tensor], divergence_weight: float) -> dict[str, Tensor]:
        weights = {
            "coarse": 1.0,
            "refined": 1.0,
            "divergence": divergence_weight,
            "flux": self.loss_config.flux_weight,
            "stop": self.loss_config.stop_weight,
        }
        total = losses["coarse"].new_zeros(())
        for name, weight in weights.items():
            total = total + weight * losses[name]
        return {**losses, "total": total}

    def noised_text_losses(self, batch: tuple[PackedBatch, int], noise_level: float) -> dict[str, Tensor]:
        """The model writes no text.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a 'mel_ar' predicts no text, so that there is no loss of it")

    def pipeline(self) -> MelARPipeline:
        """Model, vocoder and text tokenizer as users will hold them."""
        return MelARPipeline(self.model, {SPEECH: self.vocoder, TEXT: self.text_tokenizer}, {SPEECH: self.sampling})
