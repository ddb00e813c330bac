"""Count the parameters of what a recipe describes, and its FLOPs, without making any weights.

    latentlm plan recipes/paper/image_scaling_3b.yaml

How many latents an image has is the tokenizer's business: FLOPs of a LatentLM need --tokenizer FOLDER or --num-latents.
"""

import argparse

from latentlm.cli.recipes import read_recipe

TAKES_RECIPE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the recipe leaves open."""
    parser.add_argument("--num-latents", type=int, metavar="N", help="latents per image (256 for 256 pixels, patch 16)")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Build on the meta device, count, print."""
    if arguments.num_latents is not None and arguments.num_latents < 1:
        raise ValueError(f"--num-latents is {arguments.num_latents}; it must be at least 1")
    recipe = read_recipe(arguments.recipe, overrides)
    from latentlm.evaluation.cost import plan_of

    for line in plan_of(recipe, num_latents=arguments.num_latents):
        print(line)
    return 0
