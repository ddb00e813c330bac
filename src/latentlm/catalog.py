"""The table of kinds: what a recipe's `kind:` means, how to build what it trains, how to load what it saved.

A new kind of recipe or model is one row here.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latentlm.baselines.codec_lm import CodecLM, CodecLMPipeline, CodecLMRecipe, build_codec_lm
from latentlm.baselines.dit import DiT, DiTRecipe
from latentlm.baselines.givt import GIVT, GIVTRecipe
from latentlm.baselines.mar import MAR, MARRecipe
from latentlm.baselines.maskgit import MaskGIT, MaskGITRecipe
from latentlm.baselines.mel_ar import (
    MelAR,
    MelARPipeline,
    MelARRecipe,
    MelVocoder,
    MelVocoderRecipe,
    build_mel_ar,
    build_mel_vocoder,
)
from latentlm.baselines.transfusion import Transfusion, TransfusionPipeline, TransfusionRecipe, build_transfusion
from latentlm.baselines.vq_ar import VQAR, VQARRecipe
from latentlm.baselines.vq_mllm import VQMLLM, VQMLLMPipeline, VQMLLMRecipe, build_vq_mllm
from latentlm.generation.image_pipeline import ImageModelPipeline
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.models.image_model import ImageModel
from latentlm.models.latentlm import LatentLM
from latentlm.pretrained import Pretrained, read_model_config, resolve_folder
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer
from latentlm.training.objective import Objective
from latentlm.training.objectives.image_model import ImageModelRecipe, build_image_model
from latentlm.training.objectives.image_tokenizer import ImageTokenizerRecipe, build_image_tokenizer
from latentlm.training.objectives.latentlm import LatentLMRecipe, build_latentlm
from latentlm.training.objectives.multimodal import MultimodalRecipe, build_multimodal
from latentlm.training.objectives.speech_codec import SpeechCodecRecipe, build_speech_codec
from latentlm.training.objectives.speech_tokenizer import SpeechTokenizerRecipe, build_speech_tokenizer
from latentlm.training.objectives.vq_image_tokenizer import VQImageTokenizerRecipe, build_vq_image_tokenizer

MakeLoader = Callable[[int], Iterator[Mapping[str, Any]]]
"""Number of the first batch to endless batches."""


class Kind(NamedTuple):
    """One row of the table."""

    recipe_class: type
    """The dataclass that a recipe of this kind is parsed into."""
    build: Callable[[Any], tuple[Objective, MakeLoader, Any]]
    """Recipe to objective, loader factory, and the recipe with what the data filled in."""
    load: Callable[..., Any]
    """Folder or hub id to the trained thing, as users hold it."""
    model_class: type[Pretrained]
    """What is trained; `model_class(config)` on the meta device is enough to count it."""


def image_model(recipe_class: type[ImageModelRecipe], model_class: type[ImageModel]) -> Kind:
    """The row of an `ImageModel`: data, training, sampling and storage are the same for all of them."""
    return Kind(
        recipe_class,
        partial(build_image_model, model_class=model_class),
        partial(ImageModelPipeline.from_pretrained, model_class=model_class),
        model_class,
    )


KINDS: dict[str, Kind] = {
    "image_tokenizer": Kind(
        ImageTokenizerRecipe, build_image_tokenizer, ImageTokenizer.from_pretrained, ImageTokenizer
    ),
    "vq_image_tokenizer": Kind(
        VQImageTokenizerRecipe, build_vq_image_tokenizer, VQImageTokenizer.from_pretrained, VQImageTokenizer
    ),
    "speech_tokenizer": Kind(
        SpeechTokenizerRecipe, build_speech_tokenizer, SpeechTokenizer.from_pretrained, SpeechTokenizer
    ),
    "speech_codec": Kind(SpeechCodecRecipe, build_speech_codec, SpeechCodec.from_pretrained, SpeechCodec),
    "latentlm": Kind(LatentLMRecipe, build_latentlm, LatentLMPipeline.from_pretrained, LatentLM),
    "multimodal": Kind(MultimodalRecipe, build_multimodal, LatentLMPipeline.from_pretrained, LatentLM),
    "transfusion": Kind(TransfusionRecipe, build_transfusion, TransfusionPipeline.from_pretrained, Transfusion),
    "vq_mllm": Kind(VQMLLMRecipe, build_vq_mllm, VQMLLMPipeline.from_pretrained, VQMLLM),
    "mel_vocoder": Kind(MelVocoderRecipe, build_mel_vocoder, MelVocoder.from_pretrained, MelVocoder),
    "mel_ar": Kind(MelARRecipe, build_mel_ar, MelARPipeline.from_pretrained, MelAR),
    "codec_lm": Kind(CodecLMRecipe, build_codec_lm, CodecLMPipeline.from_pretrained, CodecLM),
    "dit": image_model(DiTRecipe, DiT),
    "mar": image_model(MARRecipe, MAR),
    "givt": image_model(GIVTRecipe, GIVT),
    "vq_ar": image_model(VQARRecipe, VQAR),
    "maskgit": image_model(MaskGITRecipe, MaskGIT),
}

RECIPE_CLASSES: dict[str, type] = {name: kind.recipe_class for name, kind in KINDS.items()}


def build(recipe: Any) -> tuple[Objective, MakeLoader, Any]:
    """Open a recipe's data and build what it trains.

    Returns:
        The objective; a loader factory; and the recipe with what the data filled in, which is the one to save.
    """
    return KINDS[recipe.kind].build(recipe)


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
) -> Any:
    """Load whatever a folder or hub repository holds: a tokenizer, or the pipeline of a generator.

    Args:
        source: Local folder or hub id.
        revision: Commit, branch or tag of a hub repository.
        local_files_only: Never touch the network.
        device: Where to put the weights.

    Raises:
        ValueError: If its kind is unknown.
    """
    folder = resolve_folder(source, revision=revision, local_files_only=local_files_only, verify=False)
    name = read_model_config(folder)["kind"]
    if name not in KINDS:
        raise ValueError(f"{source} holds a '{name}', which this version does not know; known: {', '.join(KINDS)}")
    return KINDS[name].load(folder, device=device)
