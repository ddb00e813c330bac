"""Encode the images of a recipe once, into a cache of latents that training reads instead of encoding again.

    latentlm encode RECIPE --tokenizer RUN/model --out DIR        then        latentlm train RECIPE ... --latents DIR

RECIPE is the recipe of the model to be trained; its data and tokenizer are used, and may be given as flags. The cache
holds the mean of each latent (and its learned log-deviation, where there is one), never a sample: noise is drawn afresh
at every reading. A run that was interrupted goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from latentlm.cli.recipes import read_recipe

TAKES_RECIPE = True
EXAMPLE_FIELD = "--data.path pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, and how fast."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the cache")
    parser.add_argument("--batch-size", type=int, default=256, help="images encoded at a time (default: 256)")
    parser.add_argument("--shard-size", type=int, default=8192, help="images per file (default: 8192)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read images (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a CUDA device if there is one)")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Encode the part `train` of the recipe's data."""
    for name in ("batch_size", "shard_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    recipe = read_recipe(arguments.recipe, overrides)
    folder = getattr(recipe, "tokenizer", None)
    if folder is not None and not isinstance(folder, str):
        raise ValueError(
            f"{arguments.recipe} trains a tokenizer; encode takes the recipe of the model that is to use it"
        )
    if not hasattr(recipe, "data"):
        raise ValueError(
            f"{arguments.recipe} is of the kind '{recipe.kind}', but encode takes recipes of labelled pictures; "
            "recordings are kept encoded by --sources.NAME.speech.cache DIR of the training itself"
        )
    if folder is None:
        raise ValueError("--tokenizer is missing: the folder of a trained image tokenizer, such as RUN/model")

    import torch
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from latentlm.cli.device import resolve_device
    from latentlm.data import LatentWriter, open_images, read_once
    from latentlm.tokenizers.image import ImageTokenizer

    device = resolve_device(arguments.device)
    tokenizer = ImageTokenizer.from_pretrained(folder, device=device)
    dataset = open_images(recipe.data, part="train")
    if recipe.data.horizontal_flip:
        print("latentlm: note that cached latents are never mirrored, whatever horizontal_flip says", file=sys.stderr)
    writer = LatentWriter(
        arguments.out,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        label_names=dataset.label_names,
        shard_size=arguments.shard_size,
    )
    batches = read_once(
        dataset, batch_size=arguments.batch_size, start=writer.position, num_workers=arguments.num_workers
    )
    num_latents = 0
    with (
        logging_redirect_tqdm(),
        torch.inference_mode(),
        tqdm(total=len(dataset), initial=writer.position, desc="encoding", unit="image") as bar,
    ):
        for position, batch in batches:
            posterior = tokenizer.posterior(batch["image"].to(device))
            writer.append(
                latent_mean=posterior.mean,
                latent_log_std=posterior.log_std,
                label=batch["label"],
                key=batch["key"],
                position=position,
            )
            num_latents = posterior.mean.shape[1]
            bar.update(position - bar.n)
    writer.close()
    print(f"{len(dataset)} images of {num_latents} latents each are in {arguments.out}; pass --latents {arguments.out}")
    return 0
