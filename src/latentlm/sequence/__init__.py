"""Documents become one causal sequence of discrete and continuous tokens (paper Section 2), sequences become batches.

    Document (parts in order)  ->  Sequence (ids, with placeholders where latents stand)  ->  PackedBatch

The id space, from 0: text ids | permanent ids (padding, one begin/end pair per modality) | class labels | null class |
side lengths of pictures | codes.

A latent span reads `begin latent … latent end`. The begin token is <BOD> of the paper, the end token <EOD>. At the
begin token and at every latent the language-model head also has a target: `begin` again means "another latent follows",
`end` means "the span is over". One pair of ids per modality is all that switching needs, and a latent's placeholder in
`input_ids` is its begin id. A picture of variable size says it: `begin rows columns latent … latent end`. Without
switch tokens (the paper's class-conditional image models) a sequence is `label latent … latent` and has no discrete
target at all.

Shapes: B rows, T positions, n latents of one modality in the whole batch in reading order, C its latent_dim.
"""

from latentlm.sequence.batch import PADDING_DOCUMENT, PackedBatch, document_causal_mask
from latentlm.sequence.builder import SequenceBuilder, TextTokenizer
from latentlm.sequence.document import (
    IGNORE_LABEL,
    CodePart,
    Document,
    IdsPart,
    LabelPart,
    LatentPart,
    Part,
    Sequence,
    TextPart,
)
from latentlm.sequence.packing import PackingPlan, PackingReport, PlannedPiece, pack
from latentlm.sequence.pieces import LatentSlot, Segment, cut, num_tokens
from latentlm.sequence.vocabulary import NUM_PERMANENT_IDS, SWITCH_MODALITIES, VocabularyConfig

__all__ = [
    "IGNORE_LABEL",
    "NUM_PERMANENT_IDS",
    "PADDING_DOCUMENT",
    "SWITCH_MODALITIES",
    "CodePart",
    "Document",
    "IdsPart",
    "LabelPart",
    "LatentPart",
    "LatentSlot",
    "PackedBatch",
    "PackingPlan",
    "PackingReport",
    "Part",
    "PlannedPiece",
    "Segment",
    "Sequence",
    "SequenceBuilder",
    "TextPart",
    "TextTokenizer",
    "VocabularyConfig",
    "cut",
    "document_causal_mask",
    "num_tokens",
    "pack",
]
