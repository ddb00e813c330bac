"""Between what people hold (strings, pictures, sounds) and what the model reads (documents of text and latents).

An answer is made of what a prompt may be made of, and can be put into the next one. Its pictures remember the latents
or codes they were drawn as: their pixels are rounded, and encoding those would sample other latents.

Shapes: C channels, H height, W width of a picture, in pixels; S samples of a sound.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from latentlm.data.audio import decode_audio
from latentlm.data.decode import read_file
from latentlm.data.images import load_image, load_image_of_any_shape, to_channels, to_unit_range
from latentlm.nn.keyed_noise import combine_keys, signed_int64
from latentlm.pictures import to_uint8
from latentlm.sequence import CodePart, Document, LatentPart, Part, TextPart
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer

AnyImageTokenizer = ImageTokenizer | VQImageTokenizer


@dataclass(frozen=True, eq=False)
class Sound:
    """A recording, or what a model said.

    Attributes:
        waveform: In [-1, 1].
        sample_rate: Hz.
    """

    waveform: Float[Tensor, "S"]
    sample_rate: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a model drew before it was decoded.

    Attributes:
        part: Latents or codes.
        fingerprint: Of the tokenizer that they belong to.
    """

    part: LatentPart | CodePart
    fingerprint: str


class DrawnPicture(Image.Image):
    """A picture that a model drew and that remembers as what; copies of it are ordinary pictures.

    Args:
        picture: As it was decoded.
        drawn: From what.
    """

    # What Pillow or pickle make of it without __init__ remembers nothing.
    _drawn: Drawn | None = None
    _digest = b""

    def __init__(self, picture: Image.Image, drawn: Drawn) -> None:
        super().__init__()
        self.__setstate__(picture.__getstate__())  # Pillow's way to fill an image of another class
        self._drawn, self._digest = drawn, _digest_of(self)

    @property
    def drawn(self) -> Drawn | None:
        """As what it was drawn; None once its pixels were changed."""
        return self._drawn if _digest_of(self) == self._digest else None


def _digest_of(picture: Image.Image) -> bytes:
    return hashlib.sha256(picture.tobytes()).digest()


@dataclass(frozen=True)
class BrokenPicture:
    """A picture that the model closed at a length that fills no grid, so that it cannot be decoded."""

    num_tokens: int
    drawn: Drawn | None = field(default=None, compare=False, repr=False)


PromptPart = str | Image.Image | np.ndarray | Tensor | BrokenPicture | Sound | Path
"""Text; a picture (a Pillow image, uint8 [H, W] or [H, W, C], float [C, H, W] in [-1, 1], or one of an answer); a
sound; or the path of a picture or sound file."""

Prompt = PromptPart | Sequence[PromptPart]
"""One part, or several in order."""

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""A path with one of these is a sound; all others are pictures."""
MAX_SOUND_SECONDS = 600.0

_PROMPT_STREAM = 0x9807


class PromptEncoder:
    """Prompts to documents, pictures by the rule that training follows: fitted, encoded, sampled from the posterior.

    Args:
        tokenizer: Of pictures; None for a model without them.
        speech_tokenizer: Of sounds; likewise.
        max_grid_side: Longest side in latents of pictures that keep their shape and say it; None makes all alike.
    """

    def __init__(
        self,
        tokenizer: AnyImageTokenizer | None,
        *,
        speech_tokenizer: SpeechTokenizer | None = None,
        max_grid_side: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.speech_tokenizer = speech_tokenizer
        self._max_grid_side = max_grid_side

    @property
    def says_size(self) -> bool:
        """Whether the model's pictures say their size."""
        return self._max_grid_side is not None

    def document(self, prompt: Prompt, *, seed: int = 0, sample: bool = True) -> Document:
        """A prompt as a document.

        Args:
            prompt: Text and pictures.
            seed: Of the pictures' posterior samples.
            sample: Draw latents from the posterior, as the model was trained; otherwise its mean.

        Raises:
            ValueError: If a part is of no known type, a picture cannot be read, or the model takes none.
        """
        parts = [prompt] if isinstance(prompt, PromptPart) else list(prompt)
        return Document(tuple(self._part(part, number, seed, sample) for number, part in enumerate(parts)))

    @torch.no_grad()
    def _part(self, part: PromptPart, number: int, seed: int, sample: bool) -> Part:
        if isinstance(part, str):
            return TextPart(part)
        if (drawn := self._as_drawn(part)) is not None:
            return drawn
        if isinstance(part, Sound) or (isinstance(part, Path) and part.suffix.lower() in SOUND_SUFFIXES):
            return self._sound_part(part, number, seed, sample)
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError("the prompt holds a picture, but this model reads none")
        pixels = self.pixels(part, name=f"picture {number} of the prompt")[None].to(self.tokenizer_device)
        grid = tokenizer.grid(*pixels.shape[-2:]) if self.says_size else None
        if isinstance(tokenizer, VQImageTokenizer):
            return CodePart("image", tokenizer.encode(pixels)[0].cpu(), grid)
        if not sample:
            return LatentPart("image", tokenizer.encode(pixels, sample=False)[0], grid)
        key = torch.tensor([number], device=pixels.device)
        noise_seed = int(combine_keys(_PROMPT_STREAM, signed_int64(seed)))
        return LatentPart("image", tokenizer.sample_keyed(tokenizer.posterior(pixels), noise_seed, key)[0], grid)

    def _as_drawn(self, part: PromptPart) -> LatentPart | CodePart | None:
        """The latents or codes that a picture was drawn as; None for what must be encoded."""
        tokenizer = self.tokenizer
        if tokenizer is None or not isinstance(part, DrawnPicture | BrokenPicture):
            return None
        drawn = part.drawn
        if drawn is not None and drawn.fingerprint == tokenizer.fingerprint():
            tokens = drawn.part
            # Models of one tokenizer may yet differ in whether pictures say their size.
            if (tokens.grid is not None) == self.says_size:
                is_codes = isinstance(tokens, CodePart)
                return tokens if is_codes else replace(tokens, latents=tokens.latents.to(self.tokenizer_device))
        if isinstance(part, BrokenPicture):
            raise ValueError(
                f"the prompt holds a broken picture of {part.num_tokens} tokens that this model cannot read: it has no "
                "pixels, and its tokens are those of another model"
            )
        return None

    def _sound_part(self, part: Sound | Path, number: int, seed: int, sample: bool) -> LatentPart:
        tokenizer = self.speech_tokenizer
        if tokenizer is None:
            raise ValueError("the prompt holds a sound, but this model reads none")
        sample_rate = tokenizer.config.sample_rate
        name = f"sound {number} of the prompt"
        if isinstance(part, Path):
            waveform = torch.from_numpy(
                decode_audio(part, str(part), sample_rate=sample_rate, max_seconds=MAX_SOUND_SECONDS)
            )
        elif part.sample_rate != sample_rate:
            raise ValueError(f"{name} has {part.sample_rate} Hz; this model takes {sample_rate} Hz, resample it first")
        else:
            waveform = part.waveform
        if not len(waveform) or not waveform.isfinite().all():
            raise ValueError(f"{name} is empty, or holds NaN or infinite samples")
        posterior = tokenizer.posterior(waveform[None].float().to(next(tokenizer.parameters()).device))
        if not sample:
            return LatentPart("speech", tokenizer.statistics.normalize(posterior.mean)[0])
        noise_seed = int(combine_keys(_PROMPT_STREAM, signed_int64(seed)))
        key = torch.tensor([number], device=posterior.mean.device)
        return LatentPart("speech", tokenizer.sample_keyed(posterior, noise_seed, key)[0])

    @property
    def tokenizer_device(self) -> torch.device:
        """Where pictures are encoded."""
        assert self.tokenizer is not None
        return next(self.tokenizer.parameters()).device

    def pixels(self, picture: PromptPart, *, name: str) -> Float[Tensor, "C H W"]:
        """A picture as the tokenizer takes it, in [-1, 1]."""
        assert self.tokenizer is not None
        config = self.tokenizer.config
        if isinstance(picture, Tensor):
            return self._checked(picture, name)
        if isinstance(picture, Path):
            data: Any = read_file(picture)
        elif isinstance(picture, Image.Image):
            data = np.asarray(to_channels(ImageOps.exif_transpose(picture), config.num_channels))
        elif isinstance(picture, np.ndarray):
            data = picture
        else:
            raise ValueError(f"{name} is a {type(picture).__name__}; give text, a Pillow image, an array or a path")
        if self._max_grid_side is None:
            pixels = load_image(
                data, name, image_size=config.image_size, num_channels=config.num_channels, resize="center_crop"
            )
        else:
            max_side = self._max_grid_side * config.patch_size
            pixels = load_image_of_any_shape(
                data, name, max_side=max_side, multiple=config.patch_size, num_channels=config.num_channels
            )
        return to_unit_range(torch.from_numpy(pixels.copy()))

    def _checked(self, picture: Tensor, name: str) -> Float[Tensor, "C H W"]:
        assert self.tokenizer is not None
        config = self.tokenizer.config
        sides = (config.image_size, config.image_size)
        fits = picture.dim() == 3 and picture.shape[0] == config.num_channels
        if not fits or (tuple(picture.shape[1:]) != sides and not self.says_size):
            raise ValueError(
                f"{name} is a tensor of shape {tuple(picture.shape)}; expected float [{config.num_channels}, "
                f"{config.image_size}, {config.image_size}] in [-1, 1]"
            )
        # Written so that NaN is refused, too.
        if not picture.is_floating_point() or not bool((picture.abs() <= 1).all()):
            raise ValueError(
                f"{name} is a tensor of {picture.dtype} that holds other values than pixels in [-1, 1]; give 8-bit "
                "pixels as an array or a Pillow image"
            )
        return picture.float()


RawPart = str | Image.Image | BrokenPicture | Sound
"""A part of an answer; models answer with `DrawnPicture`s."""


def raw_parts(document: Document, tokenizers: Mapping[str, Any]) -> list[RawPart]:
    """What a generated document says to people: its texts, and its pictures and sounds decoded."""
    parts: list[RawPart] = []
    for part in document.parts:
        if isinstance(part, TextPart):
            parts.append(part.text)
        elif isinstance(part, LatentPart | CodePart):
            parts.append(decoded(part, tokenizers[part.modality]))
    return parts


@torch.no_grad()
def decoded(
    part: LatentPart | CodePart, tokenizer: AnyImageTokenizer | SpeechTokenizer
) -> DrawnPicture | BrokenPicture | Sound:
    """The sound of some latents, or the picture of some latents or codes, if they are as many as a picture has."""
    if isinstance(tokenizer, SpeechTokenizer):
        assert isinstance(part, LatentPart)
        return Sound(tokenizer.decode(part.latents[None])[0].cpu(), tokenizer.config.sample_rate)
    tokens = part.latents if isinstance(part, LatentPart) else part.codes
    rows, columns = part.grid or tokenizer.grid(tokenizer.config.image_size, tokenizer.config.image_size)
    drawn = Drawn(part, tokenizer.fingerprint())
    if len(tokens) != rows * columns:
        return BrokenPicture(len(tokens), drawn)
    pixels = tokenizer.decode(tokens[None], grid=part.grid)
    array = to_uint8(pixels)[0].permute(1, 2, 0).numpy()
    return DrawnPicture(Image.fromarray(array[..., 0] if pixels.shape[1] == 1 else array), drawn)
