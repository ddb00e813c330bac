"""Count the parameters of what a recipe describes, and its FLOPs, without making any weights.

    latentlm plan recipes/paper/image_scaling_3b.yaml --num-latents 256

How many latents an image has is its tokenizer's business: FLOPs of a LatentLM need --num-latents or --tokenizer FOLDER;
other generators read it from the recipe's model.space, or from --tokenizer FOLDER beside --model.space.num_classes.
Models of documents are counted by the row, tokenizers of sound by the second; of Transfusion, VQ-MLLM, the codec
language model and mel frames the parameters alone.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latentlm.cli.recipes import read_recipe

if TYPE_CHECKING:
    from torch import nn

    from latentlm.models.image_model import ImageModel
    from latentlm.pretrained import Pretrained
    from latentlm.training.objectives.image_tokenizer import ImageTokenizerRecipe
    from latentlm.training.objectives.latentlm import LatentLMRecipe
    from latentlm.training.objectives.multimodal import MultimodalRecipe

TAKES_RECIPE = True
EXAMPLE_FIELD = "--trainer.batch_size 64"


class _Codes(NamedTuple):
    """Where a recipe says what codes its model reads, and which tokenizer knows it."""

    section: str
    names: tuple[str, ...]
    tokenizer: str


_CODES = {
    "vq_mllm": _Codes("model.vocabulary", ("num_codes",), "tokenizer"),
    "codec_lm": _Codes("model", ("num_codes", "num_quantizers"), "speech_tokenizer"),
}
"""By kind, for kinds whose recipes leave it to the tokenizer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the recipe leaves open."""
    parser.add_argument(
        "--num-latents", type=int, metavar="N", help="latents per image, for LatentLM: 256 for 256 pixels, patch 16"
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Build on the meta device, count, print."""
    if arguments.num_latents is not None and arguments.num_latents < 1:
        raise ValueError(f"--num-latents is {arguments.num_latents}; it must be at least 1")
    recipe = read_recipe(arguments.recipe, overrides)
    from latentlm.catalog import KINDS
    from latentlm.models.image_model import ImageModel
    from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoder

    planners = {"image_tokenizer": _plan_image_tokenizer, "multimodal": _plan_multimodal}
    model_class = KINDS[recipe.kind].model_class
    if recipe.kind == "latentlm":
        _plan_latentlm(recipe, arguments.num_latents)
    elif arguments.num_latents is not None:
        instead = "--model.space.rows and .columns" if issubclass(model_class, ImageModel) else "its recipe"
        raise ValueError(
            f"--num-latents is for recipes of kind 'latentlm'; what a '{recipe.kind}' counts is said by {instead}"
        )
    elif recipe.kind in planners:
        planners[recipe.kind](recipe)
    elif issubclass(model_class, ImageModel):
        _plan_image_model(recipe, model_class)
    elif issubclass(model_class, SpeechAutoencoder):
        _plan_speech_tokenizer(recipe, model_class)
    else:
        _plan_parameters(recipe, model_class)
    return 0


def _plan_image_model(recipe: Any, model_class: "type[ImageModel]") -> None:
    from dataclasses import replace

    import torch

    config = recipe.model
    if recipe.tokenizer is not None:
        from latentlm.generation.pipeline_folder import load_image_tokenizer
        from latentlm.training.objectives.labelled_images import token_space

        tokenizer = load_image_tokenizer(recipe.tokenizer)
        space = token_space(tokenizer, num_classes=config.space.num_classes)
        config = replace(config, space=config.space.filled_from(space))
    needed = ("num_classes", "rows", "columns", "latent_dim" if model_class.token_kind == "latents" else "num_codes")
    if missing := [f"--model.space.{name} N" for name in needed if getattr(config.space, name) == 0]:
        raise ValueError(
            f"the recipe does not say what tokens a '{recipe.kind}' models: pass {', '.join(missing)}; --tokenizer "
            f"FOLDER, a tokenizer of {model_class.token_kind}, gives all but the classes"
        )
    with torch.device("meta"):
        model = model_class(config)
    _print_parameters(model)
    flops = model.flops(recipe.generation)
    print(f"\nFLOPs per image of {config.space.num_tokens} tokens")
    _print_flops("training, forward and backward", flops.training)
    _print_flops("generation, with the recipe's guidance and steps", flops.generation)
    _print_training(recipe, flops.training)


def _plan_latentlm(recipe: "LatentLMRecipe", num_latents: int | None) -> None:
    import torch

    from latentlm.diffusion.solvers import make_solver
    from latentlm.models.cost import latentlm_flops
    from latentlm.models.latentlm import LatentLM

    if recipe.model.vocabulary.size == 0:
        raise ValueError(
            "the recipe leaves the classes to its data: pass --model.vocabulary.num_classes N, their number"
        )
    with torch.device("meta"):
        model = LatentLM(recipe.model)
    _print_parameters(model)
    num_latents = num_latents or _latents_of_tokenizer(recipe)
    if num_latents is None:
        print("\nFLOPs depend on the latents per image: pass --num-latents N or --tokenizer FOLDER")
        return
    guided = recipe.generation.cfg_scale != 1
    solver = make_solver(model.processes["image"], recipe.generation.solver)
    num_evaluations = solver.num_evaluations
    flops = latentlm_flops(model, num_latents=num_latents, num_evaluations=num_evaluations, guided=guided)
    print(f"\nFLOPs per image of {num_latents} latents")
    _print_flops("backbone, one pass", flops.backbone)
    _print_flops("head, one evaluation per latent", flops.head_evaluation)
    _print_flops("training, forward and backward", flops.training)
    streams = "two streams (guidance)" if guided else "one stream (no guidance)"
    _print_flops(f"generation, {num_evaluations} evaluations, {streams}", flops.generation)
    _print_training(recipe, flops.training)


def _plan_multimodal(recipe: "MultimodalRecipe") -> None:
    from dataclasses import replace

    import torch

    from latentlm.models.cost import row_flops
    from latentlm.models.latentlm import LatentLM
    from latentlm.tokenizers.text import open_text_tokenizer
    from latentlm.training.initial_weights import fitted_to_checkpoint

    config = recipe.model
    if recipe.init_from is not None:
        config = fitted_to_checkpoint(config, Path(recipe.init_from))
    if config.vocabulary.num_text_ids == 0:
        num_text_ids = open_text_tokenizer(recipe.text_tokenizer).num_ids
        config = replace(config, vocabulary=replace(config.vocabulary, num_text_ids=num_text_ids))
    with torch.device("meta"):
        model = LatentLM(config)
    _print_parameters(model)
    flops, trainer = row_flops(model, num_tokens=recipe.max_length), recipe.trainer
    print(f"\nFLOPs of training, forward and backward, of a row of {recipe.max_length:,} tokens")
    _print_flops("text alone", flops.text)
    for name, added in flops.latents.items():
        _print_flops(f"what each latent of {name} adds", added)
    rows = trainer.batch_size * trainer.num_accumulation_steps
    tokens = rows * recipe.max_length
    print(f"\ntraining of {trainer.num_steps:,} steps with {rows:,} rows, {tokens:,} tokens each")
    _print_flops("FLOPs per step, of text alone", flops.text * rows)
    _print_flops("FLOPs of the run, of text alone", flops.text * rows * trainer.num_steps)


def _plan_image_tokenizer(recipe: "ImageTokenizerRecipe") -> None:
    import torch

    from latentlm.evaluation.cost import image_tokenizer_flops
    from latentlm.tokenizers.image import ImageTokenizer

    with torch.device("meta"):
        tokenizer = ImageTokenizer(recipe.tokenizer)
    _print_parameters(tokenizer)
    encode, decode = image_tokenizer_flops(tokenizer)
    print("\nFLOPs per image")
    _print_flops("encode", encode)
    _print_flops("decode", decode)
    training = 3 * (encode + decode)
    _print_flops("training, forward and backward, reconstruction only", training)
    _print_training(recipe, training)


def _plan_speech_tokenizer(recipe: Any, model_class: Any) -> None:
    import torch

    from latentlm.evaluation.cost import speech_tokenizer_flops

    with torch.device("meta"):
        tokenizer = model_class(recipe.tokenizer)
    _print_parameters(tokenizer)
    encode, decode = speech_tokenizer_flops(tokenizer)
    print(f"\nFLOPs per second of sound, {tokenizer.config.frame_rate:g} latents or frames")
    _print_flops("encode", encode)
    _print_flops("decode", decode)
    training = 3 * (encode + decode)
    _print_flops("training, forward and backward, reconstruction only", training)
    _print_training(recipe, training, "seconds of sound", _seconds_of_crops(recipe))


def _seconds_of_crops(recipe: Any) -> float:
    """Of one example; 1 where recordings are not cropped."""
    return next((group.crop_seconds for group in recipe.groups.groups.values() if group.crop_seconds), 1.0)


def _plan_parameters(recipe: Any, model_class: "type[Pretrained]") -> None:
    """Of a model, or of a tokenizer of pictures, whose recipe says all that its size hangs on."""
    from dataclasses import replace

    import torch

    from latentlm.tokenizers.text import open_text_tokenizer

    recipe = _with_codes(recipe)
    config = getattr(recipe, "model", None) or recipe.tokenizer
    if hasattr(config, "vocabulary") and config.vocabulary.num_text_ids == 0:
        num_text_ids = open_text_tokenizer(recipe.text_tokenizer).num_ids
        config = replace(config, vocabulary=replace(config.vocabulary, num_text_ids=num_text_ids))
    if getattr(config, "num_text_ids", None) == 0:
        config = replace(config, num_text_ids=open_text_tokenizer(recipe.text_tokenizer).num_ids)
    with torch.device("meta"):
        model = model_class(config)
    _print_parameters(model)
    print(f"\nFLOPs of a '{recipe.kind}' are counted where it is measured, not here")


def _with_codes(recipe: Any) -> Any:
    """The recipe with what its tokenizer says of codes, where it leaves that open.

    Raises:
        ValueError: If it names no tokenizer either.
    """
    from latentlm.catalog import load
    from latentlm.config import with_changes

    if recipe.kind not in _CODES:
        return recipe
    section, names, tokenizer = _CODES[recipe.kind]
    config = recipe
    for part in section.split("."):
        config = getattr(config, part)
    missing = [name for name in names if getattr(config, name) == 0]
    if not missing:
        return recipe
    folder = getattr(recipe, tokenizer)
    if folder is None:
        flags = " ".join(f"--{section}.{name} N" for name in missing)
        raise ValueError(
            f"the recipe leaves the codes of a '{recipe.kind}' to its tokenizer: pass --{tokenizer} FOLDER, or {flags}"
        )
    trained = load(folder)
    return with_changes(recipe, {f"{section}.{name}": getattr(trained, name) for name in missing}, where=recipe.kind)


def _latents_of_tokenizer(recipe: "LatentLMRecipe") -> int | None:
    from latentlm.config import from_mapping
    from latentlm.pretrained import read_model_config, resolve_folder
    from latentlm.tokenizers.image import ImageTokenizerConfig

    if recipe.tokenizer is None:
        return None
    content = read_model_config(resolve_folder(recipe.tokenizer))
    fields = {name: value for name, value in content.items() if name not in ("kind", "format_version")}
    config = from_mapping(ImageTokenizerConfig, fields, where=recipe.tokenizer)
    return (recipe.data.image_size // config.patch_size) ** 2


def _print_parameters(module: "nn.Module") -> None:
    from latentlm.evaluation.cost import parameters_by_part

    parts = parameters_by_part(module)
    print("parameters")
    for name, count in parts.items():
        print(f"  {name:52} {count:18,}")
    print(f"  {'total':52} {sum(parts.values()):18,}")


def _print_flops(name: str, flops: float | int) -> None:
    print(f"  {name:52} {flops:18.3e}")


def _print_training(recipe: Any, flops: int | float, unit: str = "images", per_example: float = 1.0) -> None:
    trainer = recipe.trainer
    amount = trainer.batch_size * trainer.num_accumulation_steps * per_example
    print(f"\ntraining of {trainer.num_steps:,} steps with {amount:,g} {unit} each")
    _print_flops("FLOPs per step", flops * amount)
    _print_flops("FLOPs of the run", flops * amount * trainer.num_steps)
