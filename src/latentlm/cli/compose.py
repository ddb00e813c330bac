"""Write documents composed from labelled pictures, to look at them or to train anything else on them.

    latentlm compose CONFIG.yaml --part train --out documents.jsonl --num-documents 1000

CONFIG.yaml is, for example,

    kind: composed_documents
    image_size: 28
    num_channels: 1
    pools:
      digit: {path: mnist_train.npz, test_path: mnist_test.npz, split_file: mnist.json,
              names: [zero, one, two, three, four, five, six, seven, eight, nine]}
    tasks: {caption_to_image: 1, which: 1}

Each line is a document: its parts, and fields that say task, question, answer and labels.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentlm.cli.recipes import find_recipe

if TYPE_CHECKING:
    from latentlm.data.documents import RawDocument
    from latentlm.data.documents.composed import ComposedDataConfig, ComposedDocuments

TAKES_RECIPE = False
KIND = "composed_documents"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to compose, and where to write it."""
    parser.add_argument("config", metavar="CONFIG", help=f"YAML file of the kind {KIND}")
    parser.add_argument("--part", choices=("train", "validation", "test"), default="train", help="default: train")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="file to write; must not exist")
    parser.add_argument("--num-documents", type=int, metavar="N", help="how many (default: as the config says)")
    parser.add_argument(
        "--images", choices=("embedded", "files"), default="embedded", help="pictures in the lines, or in a folder"
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Compose and write."""
    path = find_recipe(arguments.config)
    from dataclasses import replace

    from latentlm.catalog import RECIPE_CLASSES
    from latentlm.config import load_recipe, recipe_class
    from latentlm.data.documents import write_jsonl
    from latentlm.data.documents.composed import ComposedDataConfig, open_composed

    if recipe_class(path, {**RECIPE_CLASSES, KIND: ComposedDataConfig}) is not ComposedDataConfig:
        raise ValueError(
            f"{path} is a recipe of a training, but compose takes a file of the kind '{KIND}': pools and tasks, such "
            f"as the section `composed:` of a recipe's source with `kind: {KIND}` above it"
        )
    config = load_recipe(path, [], {KIND: ComposedDataConfig})
    if arguments.num_documents is not None:
        number = arguments.num_documents
        config = replace(config, num_documents=number, num_held_out_documents=number)
    documents = open_composed(config, part=arguments.part)
    tasks: Counter[str] = Counter()
    write_jsonl(arguments.out, _readable(documents, config, tasks), images=arguments.images)
    counted = ", ".join(f"{task} {count}" for task, count in sorted(tasks.items()))
    print(f"{arguments.out} holds {tasks.total()} documents of the part {arguments.part}: {counted}")
    return 0


def _readable(
    documents: "ComposedDocuments", config: "ComposedDataConfig", tasks: Counter[str]
) -> "Iterator[RawDocument]":
    """The documents whose pictures can be read; their tasks are counted, too many others stop it."""
    from tqdm import tqdm

    from latentlm.data.documents.composed import fit_pictures
    from latentlm.data.records import BadRecord, DataError

    num_bad = len(documents.rejected)
    for index in tqdm(range(len(documents)), desc="composing", unit="document"):
        try:
            document = fit_pictures(documents[index], config)
        except BadRecord as error:
            logging.getLogger(__name__).warning("skipped a document: %s", error)
            num_bad += 1
            if num_bad > config.max_bad_records:
                raise DataError(f"more than {config.max_bad_records} bad records; the last: {error}") from error
            continue
        tasks[document.fields["task"]] += 1
        yield document
