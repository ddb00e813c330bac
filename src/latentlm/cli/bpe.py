"""Learn a byte-level BPE vocabulary from text files, for models that read and write text.

    latentlm bpe book.txt more/*.txt --vocab-size 8192 --out my_bpe

The files are UTF-8 and may be of any size: they are read in blocks, and memory grows with the number of different words
only. The folder is what `text_tokenizer: {kind: huggingface, path: my_bpe}` of a recipe takes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

TAKES_RECIPE = False

# One word in some 200,000 is cut in two by a block's end; no count notices.
_BLOCK_CHARS = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to read, how many ids to learn, where to write."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a text file in UTF-8")
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="ids: 256 bytes, end-of-text, and what is learned"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write; must not exist")
    parser.add_argument(
        "--min-frequency", type=int, default=2, metavar="K", help="join no pair that occurs less often (default: 2)"
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Train on the files and publish the folder."""
    for path in arguments.files:
        if not path.is_file():
            raise ValueError(f"{path} is no file")
    if arguments.out.exists():  # said before an hour of training, not after
        raise ValueError(f"{arguments.out} exists already; remove it, or choose another folder")

    from tqdm import tqdm

    from latentlm.storage import publish_folder
    from latentlm.tokenizers.text import train_bpe

    total = sum(path.stat().st_size for path in arguments.files)
    with tqdm(total=total, desc="reading", unit="B", unit_scale=True) as bar:
        tokenizer = train_bpe(
            _blocks(arguments.files, bar),
            vocab_size=arguments.vocab_size,
            min_frequency=arguments.min_frequency,
        )
    publish_folder(arguments.out, tokenizer.write_files)
    fewer = "" if tokenizer.num_ids == arguments.vocab_size else ", for no further pair occurs often enough"
    print(f"{arguments.out} holds {tokenizer.num_ids} ids{fewer}; end-of-text is {tokenizer.eos_id}")
    return 0


def _blocks(files: list[Path], bar: "tqdm") -> Iterator[str]:
    """The text of the files in blocks; a bar follows the bytes."""
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:  # newline: "\r\n" stays what it is
            try:
                while block := file.read(_BLOCK_CHARS):
                    yield block
                    bar.update(len(block.encode()))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it first") from error
