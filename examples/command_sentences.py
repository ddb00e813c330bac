"""Short sentences of a fixed grammar, that of the GRID corpus (Cooke et al. 2006), to be rendered in synthetic voices.

    python examples/command_sentences.py --count 6000 > command_sentences.txt
    latentlm synthesize command_sentences.txt --out command_sentences --sample-rate 8000 --jobs 2

"place green by q seven now": 64,000 sentences of 51 words, few enough for a small model to learn to read them aloud.
"""

import argparse
import itertools
import random
import string

GRAMMAR = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple(letter for letter in string.ascii_lowercase if letter != "w"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6000, help="different sentences (default: 6000, at most 64000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sentences = list(itertools.product(*GRAMMAR))
    if not 1 <= args.count <= len(sentences):
        parser.error(f"--count is {args.count}; the grammar has {len(sentences)} sentences")
    for words in random.Random(args.seed).sample(sentences, args.count):
        print(" ".join(words))


if __name__ == "__main__":
    main()
