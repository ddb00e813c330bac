"""Render a corpus of spoken text in many synthetic voices, with espeak-ng and flite.

    latentlm synthesize sentences.txt --out corpus --limit 2000 --jobs 2

TEXTS has one sentence a line, or tab-separated columns with a first line that names `id` and `text`. The folder then
holds Parquet files for training, validation and test, disjoint in voices and in texts, and corpus.json, which says how
they were made. Given again after an interruption, the command makes what is missing.
"""

import argparse
from pathlib import Path

TAKES_RECIPE = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is said, by whom, and where it goes."""
    parser.add_argument("texts", type=Path, metavar="TEXTS", help="text file, or table with columns id and text")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the corpus")
    parser.add_argument("--engines", default="espeak-ng,flite", metavar="LIST", help="default: espeak-ng,flite")
    parser.add_argument("--language", default="en", metavar="CODE", help="accents of espeak-ng (default: en)")
    parser.add_argument("--pitches", default="35,50,65", metavar="LIST", help="of espeak-ng, 0-99 (default: 35,50,65)")
    parser.add_argument("--flite-ratio", type=float, default=0.1, metavar="R", help="flite's share (default: 0.1)")
    parser.add_argument("--words-per-minute", default="140,200", metavar="MIN,MAX", help="default: 140,200")
    parser.add_argument("--per-text", type=int, default=1, metavar="N", help="voices for each text (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many utterances (default: all)")
    parser.add_argument("--sample-rate", type=int, default=24000, metavar="HZ", help="default: 24000")
    parser.add_argument("--codec", choices=("flac", "wav"), default="flac", help="default: flac")
    parser.add_argument("--shard-rows", type=int, default=500, metavar="N", help="utterances per file (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of who says what (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="programs at a time (default: 1)")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Render and report."""
    from tqdm import tqdm

    from latentlm.data.audio.synthesis import SynthesisConfig, read_texts, synthesize

    slowest, fastest = _numbers(arguments.words_per_minute, "--words-per-minute", count=2)
    config = SynthesisConfig(
        engines=[name.strip() for name in arguments.engines.split(",")],
        language=arguments.language,
        pitches=_numbers(arguments.pitches, "--pitches"),
        flite_ratio=arguments.flite_ratio,
        min_words_per_minute=slowest,
        max_words_per_minute=fastest,
        utterances_per_text=arguments.per_text,
        limit=arguments.limit,
        sample_rate=arguments.sample_rate,
        codec=arguments.codec,
        shard_rows=arguments.shard_rows,
        seed=arguments.seed,
    )
    texts = read_texts(arguments.texts)
    total = len(texts) * config.utterances_per_text
    total = total if config.limit is None else min(total, config.limit)
    with tqdm(total=total, desc="speaking", unit="utterance") as progress:
        done = synthesize(texts, arguments.out, config, jobs=arguments.jobs, on_progress=progress.update)
    counted = ", ".join(
        f"{split} {part['utterances']} by {len(part['voices'])} voices" for split, part in done["splits"].items()
    )
    print(f"{arguments.out} holds synthesised speech: {counted}")
    if done["failed"]:
        print(f"{len(done['failed'])} utterances were left out, for example {done['failed'][0]}")
    return 0


def _numbers(text: str, flag: str, count: int | None = None) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or count not in (None, len(parts)):
        wanted = "whole numbers" if count is None else f"{count} whole numbers"
        raise ValueError(f"{flag} is {text!r}, expected {wanted} with commas between")
    return [int(part) for part in parts]
