"""Labels in, pictures out: what every trained image generator is to its users, to the metrics and to the command line.

Their folders are those of `pipeline_folder.py`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.config import with_changes
from latentlm.generation.pipeline_folder import (
    AnyImageTokenizer,
    as_image_tokenizer,
    read_label_names,
    read_sampling,
    read_tokenizer,
    write_pipeline,
)
from latentlm.models.image_model import ImageModel
from latentlm.nn.flops import ImageFlops
from latentlm.nn.keyed_noise import signed_int64
from latentlm.nn.precision import Precision, autocast
from latentlm.pretrained import HubUpload, resolve_folder
from latentlm.tokenizers.fingerprint import refuse_other_tokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer


class ImagePipeline(HubUpload):
    """A trained generator together with the tokenizers it was trained with.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: By modality, "image" among them.
        sampling: Defaults of how each modality is sampled; dataclasses with a field `cfg_scale`.
        label_names: Name of every class, for people; may be empty.

    Raises:
        ValueError: If there are label names, but not one per class.
    """

    steps_field: str | None = None
    """Dotted name of the sampling option that says how many steps a picture takes, if there is one."""

    def __init__(
        self,
        model: Any,
        tokenizers: Mapping[str, Any],
        sampling: Mapping[str, Any],
        *,
        label_names: SequenceOf[str] = (),
    ) -> None:
        self.model = model.eval()
        self.tokenizers = dict(tokenizers)
        self.sampling = dict(sampling)
        self.label_names = tuple(label_names)
        if self.label_names and len(self.label_names) != self.num_classes:
            raise ValueError(f"{len(label_names)} label names were given for a model of {self.num_classes} classes")

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes that can be asked for."""

    @property
    def image_tokenizer(self) -> AnyImageTokenizer:
        """The tokenizer of pictures."""
        return self.tokenizers["image"]

    @abstractmethod
    def draw_tokens(
        self, labels: SequenceOf[int | None], seeds: SequenceOf[int], sampling: Any, grid: tuple[int, int]
    ) -> Tensor:
        """Tokens of one picture per label: latents [B, N, C] or codes [B, N]. Arguments as in `generate_images`."""

    @abstractmethod
    def flops(self, sampling: Any = None) -> ImageFlops:
        """What one picture of the training size costs; None as sampling takes the defaults."""

    def sampling_with(self, changes: Mapping[str, Any]) -> Any:
        """The default sampling of pictures with some options changed.

        Args:
            changes: Options by dotted name, such as {"cfg_scale": 2.0, "solver.num_inference_steps": 10}.

        Raises:
            ValueError: If there is no such option, or its value is refused.
        """
        return with_changes(self.sampling["image"], changes, where=f"sampling of a '{self.kind}'")

    def generate_images(
        self,
        labels: SequenceOf[int | None],
        *,
        seeds: SequenceOf[int] | None = None,
        seed: int = 0,
        sampling: Any = None,
        batch_size: int = 256,
        height: int | None = None,
        width: int | None = None,
        precision: Precision = "float32",
    ) -> Float[Tensor, "B C H W"]:
        """One picture per label, in [-1, 1].

        A picture depends on its own label and seed, not on the batch around it (up to rounding: the order of float
        sums differs between batch sizes).

        Args:
            labels: Classes; None draws without a condition.
            seeds: One per picture; None takes seed, seed + 1, …
            seed: First of the default seeds.
            sampling: Steps, guidance and the like; None takes the model's defaults.
            batch_size: Pictures drawn at a time.
            height: Of the picture in pixels; None is the tokenizer's training size.
            width: Likewise.
            precision: Of the model's matrix products; what the solver adds up and the tokenizer's decoder stay in
                float32.

        Raises:
            ValueError: If a label does not exist, the seeds are not one per label, or the patch does not divide the
                size.
        """
        tokenizer = self.image_tokenizer
        size: int = tokenizer.config.image_size
        height = size if height is None else height
        width = size if width is None else width
        grid = tokenizer.grid(height, width)
        seeds = list(range(seed, seed + len(labels))) if seeds is None else seeds
        if len(seeds) != len(labels):
            raise ValueError(f"{len(seeds)} seeds were given for {len(labels)} labels; give one per picture")
        sampling = self.sampling["image"] if sampling is None else sampling
        pictures = [torch.empty(0, tokenizer.config.num_channels, height, width, device=self.model.device)]
        for start in range(0, len(labels), batch_size):
            chosen = slice(start, start + batch_size)
            with autocast(self.model.device, precision):
                tokens = self.draw_tokens(labels[chosen], seeds[chosen], sampling, grid)
            with torch.no_grad():
                pictures.append(tokenizer.decode(tokens, grid=grid))
        return torch.cat(pictures)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `from_pretrained` needs; see `write_pipeline`."""
        write_pipeline(Path(folder), self.model, self.tokenizers, self.sampling, label_names=self.label_names)


class ImageModelPipeline(ImagePipeline):
    """A trained `ImageModel` that takes labels and gives pictures.

    Args:
        model: The model.
        tokenizer: The one it was trained with.
        sampling: Its default options, of the model's `sampling_class`; None takes those of the class.
        label_names: Name of every class; may be empty.

    Raises:
        ValueError: If model and tokenizer do not belong together.
    """

    model: ImageModel

    def __init__(
        self,
        model: ImageModel,
        tokenizer: AnyImageTokenizer,
        sampling: Any = None,
        *,
        label_names: SequenceOf[str] = (),
    ) -> None:
        if isinstance(tokenizer, VQImageTokenizer) != (model.token_kind == "codes"):
            raise ValueError(f"a '{model.kind}' models {model.token_kind}, but the tokenizer is a '{tokenizer.kind}'")
        refuse_other_tokenizer(tokenizer, model.space.tokenizer_fingerprint, name="image")
        sampling = type(model).sampling_class() if sampling is None else sampling
        super().__init__(model, {"image": tokenizer}, {"image": sampling}, label_names=label_names)
        self.kind = model.kind
        self.steps_field = type(model).steps_field

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        model_class: type[ImageModel],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> "ImageModelPipeline":
        """Load a folder, or a repository of the hub.

        Args:
            source: Local folder or hub id.
            model_class: What the folder holds; `latentlm.load` looks it up.
            revision: Commit, branch or tag of a hub repository.
            local_files_only: Never touch the network.
            device: Where to put the weights.

        Raises:
            ValueError: If the folder is damaged, holds something else, or its parts do not belong together.
        """
        folder = resolve_folder(source, revision=revision, local_files_only=local_files_only)
        # The model first: a folder of another one is refused by its name and not by its sampling options.
        model = model_class.from_folder(folder, device=device)
        return cls(
            model,
            as_image_tokenizer(read_tokenizer(folder, "image", device=device), folder),
            read_sampling(folder, {"image": model_class.sampling_class}).get("image"),
            label_names=read_label_names(folder),
        )

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for."""
        return self.model.space.num_classes

    def draw_tokens(
        self, labels: SequenceOf[int | None], seeds: SequenceOf[int], sampling: Any, grid: tuple[int, int]
    ) -> Tensor:
        """Tokens of one picture per label; see `generate_images`."""
        wrong = [label for label in labels if label is not None and not 0 <= label < self.num_classes]
        if wrong:
            raise ValueError(f"label {wrong[0]} does not exist; the model knows classes 0 to {self.num_classes - 1}")
        null, device = self.model.space.null_class, self.model.device
        with torch.no_grad():
            return self.model.sample(
                torch.tensor([null if label is None else label for label in labels], device=device),
                seeds=torch.tensor([signed_int64(seed) for seed in seeds], device=device),
                sampling=sampling,
                grid=grid,
            )

    def flops(self, sampling: Any = None) -> ImageFlops:
        """What one picture of the training size costs; None as sampling takes the defaults."""
        return self.model.flops(self.sampling["image"] if sampling is None else sampling)
