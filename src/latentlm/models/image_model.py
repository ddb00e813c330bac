"""What a class-conditional model of the tokens of one picture is to the rest of the package.

    LabelledTokens ─losses▶ named losses          labels, seeds, sampling ─sample▶ tokens

Tokens are latents [B, N, C] of a continuous tokenizer or codes [B, N] of a vector-quantized one, in reading order.
LatentLM speaks documents of many kinds and is not one of these; the models it is compared with are.

Shapes: B batch, N tokens of a picture (rows · columns), C latent_dim.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentlm.nn.flops import ImageFlops
from latentlm.pretrained import Pretrained

TokenKind = Literal["latents", "codes"]


@dataclass(frozen=True, kw_only=True)
class TokenSpace:
    """What a model reads and writes. Training fills in what is 0 from the data and the tokenizer."""

    num_classes: int = 0
    """Classes of the condition; the null class of guidance comes after them."""
    rows: int = 0
    """Of the grid of tokens."""
    columns: int = 0
    latent_dim: int = 0
    """Width C of a latent; 0 for a model of codes."""
    num_codes: int = 0
    """Size of the codebook; 0 for a model of latents."""
    tokenizer_fingerprint: str | None = None
    """The tokenizer that the model was trained with; another one is refused."""

    @property
    def num_tokens(self) -> int:
        """N, tokens of a picture of the training size."""
        return self.rows * self.columns

    @property
    def null_class(self) -> int:
        """The label that stands for no condition."""
        return self.num_classes

    def filled_from(self, found: "TokenSpace") -> "TokenSpace":
        """This space with what it leaves open taken from `found`.

        Raises:
            ValueError: If the two say different things.
        """
        for name in ("num_classes", "rows", "columns", "latent_dim", "num_codes"):
            ours, theirs = getattr(self, name), getattr(found, name)
            if ours not in (0, theirs):
                raise ValueError(
                    f"the recipe says model.space.{name}: {ours}, but data and tokenizer give {theirs}; leave the "
                    "field out to take theirs"
                )
        return replace(found)


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """A training batch.

    Attributes:
        labels: Int64 [B]; the null class where the condition was dropped.
        tokens: Latents Float [B, N, C], freshly sampled and of unit variance, or codes Int64 [B, N].
        keys: Int64 [B]; with `noise_seed` they decide all noise of an example.
        noise_seed: Another one for every training step.
    """

    labels: Int[Tensor, "B"]
    tokens: Float[Tensor, "B N C"] | Int[Tensor, "B N"]
    keys: Int[Tensor, "B"]
    noise_seed: int


class ImageModel(Pretrained, nn.Module):
    """A class-conditional model of the tokens of a picture. Its config dataclass has a field `space: TokenSpace`."""

    token_kind: ClassVar[TokenKind]
    """What it models."""
    sampling_class: ClassVar[type]
    """Frozen dataclass of its sampling options; has at least `cfg_scale: float`, 1 being no guidance."""
    steps_field: ClassVar[str | None] = None
    """Dotted name of the field of `sampling_class` that says how many steps a picture takes, if it has one."""

    @property
    def space(self) -> TokenSpace:
        """What it reads and writes."""
        return self.config.space

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def enable_activation_checkpointing(self) -> None:
        """From now on recompute the activations of every layer in the backward pass instead of keeping them."""

    def check_space(self) -> None:
        """Refuse a space that is not filled in, or not of this model's kind of tokens; constructors call it.

        Raises:
            ValueError: In a sentence.
        """
        space, wanted = self.space, "latent_dim" if self.token_kind == "latents" else "num_codes"
        if min(space.num_classes, space.num_tokens, getattr(space, wanted)) < 1:
            raise ValueError(f"the model's space needs num_classes, rows, columns and {wanted}, but is {space}")

    @abstractmethod
    def losses(
        self, batch: LabelledTokens, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Training losses by name, of which `total` is differentiated.

        Args:
            batch: Labels and tokens.
            totals: Normaliser of each loss: `loss_counts` summed over all micro-batches and ranks; None means this
                batch's own.
        """

    def loss_counts(self, batch: LabelledTokens) -> dict[str, int]:
        """How many tokens the loss `total` is a mean over: all of them, unless the model says otherwise."""
        return {"total": batch.tokens.shape[0] * batch.tokens.shape[1]}

    @abstractmethod
    def sample(
        self, labels: Int[Tensor, "B"], *, seeds: Int[Tensor, "B"], sampling: Any, grid: tuple[int, int]
    ) -> Float[Tensor, "B N C"] | Int[Tensor, "B N"]:
        """Draw the tokens of one picture per label, without gradients.

        A picture depends on its own label and seed alone, up to rounding.

        Args:
            labels: Classes; the null class draws without a condition.
            seeds: All noise of a picture follows from its own.
            sampling: An instance of `sampling_class`.
            grid: Rows and columns of tokens.

        Raises:
            ValueError: If the model cannot draw such a grid.
        """

    @abstractmethod
    def flops(self, sampling: Any) -> ImageFlops:
        """What one picture of the training size costs; the model may be on the meta device."""
