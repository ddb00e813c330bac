"""The id space of discrete tokens, with the switch tokens whose ids are permanent.

From 0: text ids | permanent ids (padding, one begin/end pair per modality) | class labels | null class.
"""

from dataclasses import dataclass

SWITCH_MODALITIES = ("image", "speech", "video", "action", "reserved")
"""Owners of the permanent begin/end pairs. The order is part of the file format: append only."""

NUM_PERMANENT_IDS = 1 + 2 * len(SWITCH_MODALITIES)
"""Padding and the pairs: 11, exactly the free ids that cl100k_base leaves below 100,288 (Table 8's vocabulary)."""


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Which discrete tokens the model knows."""

    num_text_ids: int = 0
    """Ids of the text tokenizer, its end-of-text included (bytes: 257; cl100k_base: 100,277)."""
    switch_tokens: bool = False
    """Reserve the permanent ids: padding and the begin/end pairs of every modality."""
    num_classes: int = 0
    """Class labels; one more id, the null class, is added for classifier-free guidance."""

    def __post_init__(self) -> None:
        if min(self.num_text_ids, self.num_classes) < 0:
            raise ValueError("num_text_ids and num_classes cannot be negative")
        if self.num_text_ids and not self.switch_tokens:
            raise ValueError("a vocabulary with text needs switch_tokens: true, to tell text from latents")

    @property
    def num_permanent_ids(self) -> int:
        """Ids between text and classes."""
        return NUM_PERMANENT_IDS if self.switch_tokens else 0

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self.num_text_ids + self.num_permanent_ids + (self.num_classes + 1 if self.num_classes else 0)

    @property
    def pad_id(self) -> int:
        """Padding; any id does when there is no permanent one, for padding is never looked at."""
        return self.num_text_ids if self.switch_tokens else 0

    def _pair(self, modality: str) -> int:
        if not self.switch_tokens:
            raise ValueError("this vocabulary has no switch tokens (switch_tokens: false)")
        if modality not in SWITCH_MODALITIES:
            raise ValueError(f"no switch tokens are reserved for '{modality}'; known: {', '.join(SWITCH_MODALITIES)}")
        return self.num_text_ids + 1 + 2 * SWITCH_MODALITIES.index(modality)

    def begin_id(self, modality: str) -> int:
        """<BOD>: a span of this modality's latents begins, or goes on."""
        return self._pair(modality)

    def end_id(self, modality: str) -> int:
        """<EOD>: the span is over, back to the language-model head."""
        return self._pair(modality) + 1

    def class_id(self, label: int | None) -> int:
        """Id of a class label; None is the null class.

        Raises:
            ValueError: If the label does not exist.
        """
        if not self.num_classes:
            raise ValueError("this vocabulary has no class labels (num_classes: 0)")
        if label is None:
            label = self.num_classes
        elif not 0 <= label < self.num_classes:
            raise ValueError(f"label {label} is outside 0..{self.num_classes - 1}")
        return self.num_text_ids + self.num_permanent_ids + label

    def label_of(self, token_id: int) -> int | None:
        """The class label of an id of the label range; None for the null class.

        Raises:
            ValueError: If the id is not in that range.
        """
        label = token_id - self.num_text_ids - self.num_permanent_ids
        if not (self.num_classes and 0 <= label <= self.num_classes):
            raise ValueError(f"id {token_id} is not a class label")
        return None if label == self.num_classes else label
