"""The id space of discrete tokens, with the switch tokens whose ids are permanent.

From 0: text ids | permanent ids (padding, one begin/end pair per modality) | class labels | null class | sizes | codes.
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
    max_grid_side: int = 0
    """Longest side, in latents, of a picture whose size is said: its span then reads `begin rows columns latent …`. One
    id per side length; 0 where all pictures have one size that the recipe knows."""
    num_codes: int = 0
    """Codes of a vector-quantized tokenizer, for models whose pictures are discrete tokens too."""

    def __post_init__(self) -> None:
        if min(self.num_text_ids, self.num_classes, self.max_grid_side, self.num_codes) < 0:
            raise ValueError("num_text_ids, num_classes, max_grid_side and num_codes cannot be negative")
        if self.num_codes and not self.switch_tokens:
            raise ValueError("codes stand between begin and end tokens, which need switch_tokens: true")
        if self.max_grid_side and not self.switch_tokens:
            raise ValueError("max_grid_side says sizes behind begin tokens, which need switch_tokens: true")
        if self.num_text_ids and not self.switch_tokens:
            raise ValueError("a vocabulary with text needs switch_tokens: true, to tell text from latents")

    @property
    def num_permanent_ids(self) -> int:
        """Ids between text and classes."""
        return NUM_PERMANENT_IDS if self.switch_tokens else 0

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self.first_code_id + self.num_codes

    @property
    def _first_size_id(self) -> int:
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

    @property
    def first_code_id(self) -> int:
        """Id of code 0; codes are the last ids."""
        return self._first_size_id + self.max_grid_side

    def size_id(self, side: int) -> int:
        """Id that says the rows or columns of a picture.

        Raises:
            ValueError: If the vocabulary has no id for this length.
        """
        if not 1 <= side <= self.max_grid_side:
            raise ValueError(f"a side of {side} latents cannot be said: max_grid_side is {self.max_grid_side}")
        return self._first_size_id + side - 1

    def side_of(self, token_id: int) -> int | None:
        """The side length that an id says; None if it says none."""
        side = token_id - self._first_size_id + 1
        return side if 1 <= side <= self.max_grid_side else None
