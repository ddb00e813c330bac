"""The `latentlm` command: finds the verb, hands over, and turns errors into sentences.

Each verb is a file of this package. Their one-line summaries stand in the table below, so that `latentlm --help` needs
neither the verbs nor torch and answers at once. A verb's file offers

    TAKES_RECIPE: bool     # whether a recipe comes first and its fields are flags
    EXAMPLE_FIELD: str     # of verbs that take one: such a flag that means something there
    add_arguments(parser: argparse.ArgumentParser) -> None
    run(arguments: argparse.Namespace, overrides: list[str]) -> int     # exit code; overrides: the recipe's fields
"""

import argparse
import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence

from latentlm import __version__

VERBS = {
    "train": "train what a recipe describes: a tokenizer, a LatentLM, a model to compare it with",
    "encode": "turn images into cached latents, once, so that training need not encode them again",
    "generate": "draw images of classes, or answer prompts of text and pictures",
    "say": "speak a text in the voice of a recording, to a file or as a stream",
    "voice": "make a voice file of a recording, for say",
    "reconstruct": "send a sound or a picture through a trained tokenizer and back",
    "evaluate": "score a trained model: distances, accuracy and more, beside those of real images",
    "experiment": "train and measure the cells of an experiment file, and write the page of results",
    "compose": "compose documents of text and pictures from labelled pictures, and write them as JSON Lines",
    "synthesize": "render a corpus of spoken text in many synthetic voices, with espeak-ng and flite",
    "bpe": "learn a byte-level BPE vocabulary from text files",
    "demo": "train on handwritten digits from scratch, sample and score: a few minutes on two cores",
    "verify": "check the files of checkpoints and models against their manifests",
    "plan": "count parameters and FLOPs of a recipe without building its weights",
}

_EPILOG = """examples:
  latentlm demo --out runs/demo
      everything at once, on digits that ship with scikit-learn
  latentlm train recipes/image_folder_tokenizer.yaml --data.path my_pictures --out runs/tokenizer
  latentlm train recipes/image_folder.yaml --data.path my_pictures --tokenizer runs/tokenizer/model --out runs/model
      an image tokenizer, then a LatentLM, on a folder with one subfolder of images per class
  latentlm generate runs/model/model --labels cat,dog --out pictures
      pictures of two of the classes, by the names of their folders

`latentlm VERB --help` shows a verb's arguments; `latentlm train RECIPE --help` every field of that recipe, each of
which is a flag. An interrupted training continues when the same command is given again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 the answer is no, 2 wrong use or refused input.

    Args:
        argv: Arguments without the program's name; None means `sys.argv`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _dispatch([argument for argument in arguments if argument != "--debug"])
    except BrokenPipeError:
        # The reader of our output has gone (`latentlm plan … | head`). Point stdout elsewhere, or the interpreter's
        # own flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("\nlatentlm: interrupted", file=sys.stderr)
        return 130
    # The errors that speak to a user: refused values, files that are not there, extras that are not installed.
    except (ValueError, OSError, ImportError) as error:
        if debug:
            traceback.print_exc()
        print(f"latentlm: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"  # instead of "[Errno 2] No such file or directory: ..."
    return str(error)


def _dispatch(arguments: list[str]) -> int:
    parser = _top_parser()
    if not arguments:
        parser.print_help()
        return 2
    if arguments[0].startswith("-"):
        parser.parse_args(arguments)  # --help and --version end here
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(VERBS)}"
        raise ValueError(f"{verb!r} is not a verb; {hint}")
    module = importlib.import_module(f"latentlm.cli.{verb}")
    wants_help = not {"-h", "--help"}.isdisjoint(rest)
    verb_parser = argparse.ArgumentParser(
        prog=f"latentlm {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation could swallow a recipe's field
    )
    if module.TAKES_RECIPE:
        verb_parser.add_argument(
            "recipe", metavar="RECIPE", help=f"YAML file; its fields are flags: {module.EXAMPLE_FIELD}"
        )
        if rest and rest[0].startswith("-") and not wants_help:
            # argparse would take the first value of a field for the recipe.
            raise ValueError(f"the recipe comes first: latentlm {verb} RECIPE {' '.join(rest[:2])} ...")
        if wants_help:
            verb_parser.epilog = _help_on_recipe(verb, rest[0])
    module.add_arguments(verb_parser)
    known, overrides = verb_parser.parse_known_args(rest)
    if overrides and not module.TAKES_RECIPE:
        verb_parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if overrides:
        _refuse_misspelt_flags(verb_parser, known.recipe, overrides)
    return module.run(known, overrides)


def _refuse_misspelt_flags(verb_parser: argparse.ArgumentParser, recipe: str, overrides: list[str]) -> None:
    """What looks like a flag of the verb, and is no field of the recipe, is not answered with the recipe's fields."""
    own = re.findall(r"--[a-z][a-z-]+", verb_parser.format_usage())
    for flag in (word.partition("=")[0] for word in overrides if word.startswith("--") and "." not in word):
        if near := difflib.get_close_matches(flag.replace("_", "-"), own, n=1, cutoff=0.85):
            from latentlm.cli.recipes import names_of_recipe

            if flag.removeprefix("--") not in names_of_recipe(recipe):
                raise ValueError(f"{flag} is no flag; did you mean {near[0]}?")


def _help_on_recipe(verb: str, recipe: str) -> str:
    if recipe.startswith("-"):
        return f"`latentlm {verb} RECIPE --help` lists every field of that recipe."
    from latentlm.cli.recipes import fields_of_recipe

    return f"fields of {recipe}, each of them a flag:\n{fields_of_recipe(recipe)}"


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {summary}" for verb, summary in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="latentlm",
        usage="latentlm VERB ...",
        description=f"Multimodal latent language modeling with next-token diffusion.\n\nverbs:\n{verbs}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentlm {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser
