"""Trains a codec language model on recordings with their texts: next groups of first codes, and further codes by level.

Sources, packing, dropped conditions and held-out losses are those of all models of documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from latentlm.baselines.codec_lm.model import CodecBatch, CodecLM
from latentlm.baselines.codec_lm.pipeline import CodecLMPipeline
from latentlm.baselines.codec_lm.rows import CodecUtterance
from latentlm.baselines.codec_lm.sampling import CodecSamplingConfig
from latentlm.generation.pipeline_folder import TEXT
from latentlm.generation.speech import SPEECH
from latentlm.sequence import IdsPart, LatentSlot
from latentlm.tokenizers.speech import SpeechCodec
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.objective import Counts
from latentlm.training.objectives.documents import DocumentObjective


class CodecLMObjective(DocumentObjective):
    """Cross-entropies of codes on packed utterances.

    Args:
        model: What is trained.
        codec: Saved with the model; its codes are made beforehand.
        text_tokenizer: Saved with the model.
        sampling: Likewise.
        **options: Of `DocumentObjective`.

    Raises:
        ValueError: If the model was not built for these tokenizers.
    """

    kind = "codec_lm"
    model: CodecLM

    def __init__(
        self,
        model: CodecLM,
        codec: SpeechCodec,
        text_tokenizer: StoredTextTokenizer,
        *,
        sampling: CodecSamplingConfig,
        **options: Any,
    ) -> None:
        super().__init__(model, None, **options)
        self.speech_tokenizer = codec.requires_grad_(False).eval()
        self.frozen_children = (*self.frozen_children, "speech_tokenizer")
        self.text_tokenizer = text_tokenizer
        self.sampling = sampling
        self.pipeline()  # refuses parts that do not belong together

    def enable_activation_checkpointing(self) -> None:
        """Recompute the layers of both networks in the backward pass."""
        self.model.autoregressive.transformer.activation_checkpointing = True
        self.model.non_autoregressive.activation_checkpointing = True

    def encode(self, pictures: Tensor, noise_seed: int, keys: Tensor) -> Tensor:
        """There are no pictures: the recipe refuses sources that hold some."""
        raise ValueError(f"a '{self.kind}' reads no pictures")

    def take_codes(self, modality: str, codes: Tensor) -> Tensor:
        """Codes [B, n, Q], as they are; nothing about them is random."""
        return codes.long()

    def lay_out(
        self, rows: list[list[RawPiece]], tokens: Mapping[int, Sequence[Tensor]], noise_seed: int
    ) -> CodecBatch:
        """Packed utterances for both networks."""
        utterances = [[one for piece in row if (one := self._utterance(piece, tokens)) is not None] for row in rows]
        batch = self.model.batch(utterances, noise_seed=noise_seed, group_names=self.group_names)
        return batch._replace(
            autoregressive=batch.autoregressive.to(self.device),
            non_autoregressive=batch.non_autoregressive.to(self.device),
        )

    def _utterance(self, piece: RawPiece, tokens: Mapping[int, Sequence[Tensor]]) -> CodecUtterance | None:
        """The sound of a piece and the text before it; None if a long text left no place for the sound."""
        text_ids: list[int] = []
        for part in piece.segments:
            if isinstance(part, LatentSlot):
                codes = tokens[piece.key][part.raw]
                return CodecUtterance([self.text_tokenizer.bos_id, *text_ids], codes, piece.key, piece.group)
            assert isinstance(part, IdsPart)
            text_ids += [token for token in part.ids if token != self.text_tokenizer.bos_id]
        return None

    def loss_counts(self, batch: CodecBatch) -> Counts:
        """See `CodecLM.loss_counts`."""
        return self.model.loss_counts(batch)

    def model_losses(self, batch: CodecBatch, totals: Counts | None) -> dict[str, Tensor]:
        """`autoregressive` and `non_autoregressive`, also by source; see `CodecLM.forward`."""
        return self.model(batch, totals=totals)

    def noised_text_losses(self, batch: CodecBatch, noise_level: float) -> dict[str, Tensor]:
        """Codes have no levels of noise between right and wrong, and texts are not predicted."""
        raise ValueError("a codec language model predicts no text, and no noise can be added to its codes")

    def pipeline(self) -> CodecLMPipeline:
        """Model and tokenizers as users will hold them."""
        tokenizers = {SPEECH: self.speech_tokenizer, TEXT: self.text_tokenizer}
        return CodecLMPipeline(self.model, tokenizers, {SPEECH: self.sampling})
