"""CLIP score of pictures and captions with CLIP weights that the user brings, by way of the library transformers.

Nothing is ever downloaded: the weights, the tokenizer and the preprocessing are those of a folder. Scores compare only
with those of the same weights, and say little about pictures of a few dozen pixels, which CLIP sees enlarged; the score
of the real pictures belongs beside every one.

Shapes: N pictures, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latentlm.evaluation.scores_table import Columns
from latentlm.pictures import to_uint8
from latentlm.storage import read_json

HESSEL_PREFIX = "A photo depicts "
"""What Hessel et al. 2021 put before each caption."""
_HESSEL_SCALE = 2.5
"""Their w, which stretches the cosines that occur to about [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """Pictures and their captions, seen by CLIP."""

    num_pictures: int
    clip_score: float
    """100 x mean cosine of picture and caption: what papers on text-to-image generation print."""
    clip_s: float
    """Mean of 2.5 x max(cosine, 0) (Hessel et al. 2021, who put a prefix before the captions)."""

    columns: ClassVar[Columns] = {
        "num_pictures": ("pictures", "d"),
        "clip_score": ("CLIP score ↑", ".2f"),
        "clip_s": ("CLIP-S, w = 2.5 ↑", ".3f"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


class ClipJudge:
    """A CLIP model of the user's.

    Args:
        folder: A CLIP folder as transformers saves it: config.json, model.safetensors, tokenizer and preprocessor.
        batch_size: Pictures per pass.
        device: Where the model runs.
        progress: Show a progress bar.

    Raises:
        ImportError: If transformers is not installed; the message names the extra.
        ValueError: If the folder is no such folder, or misses tensors.
    """

    def __init__(
        self, folder: Path, *, batch_size: int = 32, device: str | torch.device = "cpu", progress: bool = False
    ) -> None:
        _check_folder(folder)
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise ImportError("the CLIP score needs transformers: pip install 'latentlm[hf]'") from error
        try:
            # Safetensors only: a pickle could run code. Missing tensors would only be logged, and stay random.
            loaded: Any = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            model, loading = loaded
            processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is not a CLIP folder that transformers can read: {error}") from error
        if loading["missing_keys"]:
            raise ValueError(f"the weights in {folder} miss {sorted(loading['missing_keys'])[:5]}")
        self._model: Any = model.to(device).eval()
        self._processor: Any = processor
        self._batch_size, self._progress = batch_size, progress

    def score(self, images: Float[Tensor, "N C H W"], captions: Sequence[str], *, prefix: str = "") -> ClipScores:
        """The mean of `cosines` under both of its usual scales.

        Args:
            images: Pictures in [-1, 1].
            captions: One per picture.
            prefix: Put before each caption; `HESSEL_PREFIX` for the CLIP-S of that paper.

        Raises:
            ValueError: As `cosines`.
        """
        cosines = self.cosines(images, captions, prefix=prefix)
        return ClipScores(
            num_pictures=len(cosines),
            clip_score=100 * cosines.mean().item(),
            clip_s=_HESSEL_SCALE * cosines.clamp_min(0).mean().item(),
        )

    @torch.no_grad()
    def cosines(
        self, images: Float[Tensor, "N C H W"], captions: Sequence[str], *, prefix: str = ""
    ) -> Float[Tensor, " N"]:
        """Cosine of each picture's embedding with that of its caption, in float64.

        Args:
            images: Pictures in [-1, 1], taken at 8 bits a pixel, as if they had been saved.
            captions: One per picture; what is longer than the model's context (77 ids) is cut off.
            prefix: Put before each caption.

        Raises:
            ValueError: If the numbers differ, there are none, or pictures are not finite.
        """
        if len(images) != len(captions) or not captions:
            raise ValueError(f"pictures and captions come in pairs, but got {len(images)} and {len(captions)}")
        if not images.isfinite().all():
            raise ValueError("the pictures are not all finite; did the model diverge?")
        cosines = []
        starts = range(0, len(captions), self._batch_size)
        for start in tqdm(starts, desc="CLIP", unit="batch", disable=not self._progress):
            chosen = slice(start, start + self._batch_size)
            inputs = self._processor(
                text=[prefix + caption for caption in captions[chosen]],
                images=list(to_uint8(images[chosen])),
                return_tensors="pt",
                padding=True,
                truncation=True,
                # Not every folder's tokenizer knows the limit.
                max_length=self._model.config.text_config.max_position_embeddings,
            )
            seen = self._model(**inputs.to(self._model.device))
            # Both embeddings are unit vectors already.
            cosines.append((seen.image_embeds.double() * seen.text_embeds.double()).sum(dim=1).cpu())
        return torch.cat(cosines)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"there is no file {folder / 'config.json'}; the CLIP score reads a folder of CLIP weights that you bring, "
            "as transformers' save_pretrained writes it"
        )
    content = read_json(folder / "config.json")
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != "clip":
        raise ValueError(f"{folder} holds a model of type {kind!r}, but the CLIP score needs one of type 'clip'")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} holds no .safetensors file; pickled weights are never read: load them with transformers' "
            "CLIPModel once and save_pretrained them"
        )
