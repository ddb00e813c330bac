"""Prompts on the command line: text and pictures in, text on the terminal as it comes, pictures and a page on disk."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm.generation.document_pipeline import DocumentPipeline, RawPart
    from latentlm.generation.prompts import Prompt

PICTURE_MARK = "@"
"""A part of a prompt that starts with it names a file: a sound by its suffix (.wav, .flac, …), else a picture."""

_MAX_NEW_TOKENS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a prompt is, and how it is answered."""
    group = parser.add_argument_group("models of text and pictures")
    group.add_argument(
        "--prompt",
        action="append",
        nargs="+",
        metavar="PART",
        help=f'text, or a picture or sound as {PICTURE_MARK}file.png, in order: --prompt "What is this?" @shoe.png '
        '" It is"; may be repeated, and all are answered as one batch',
    )
    # No defaults here: `generate` asks which flags were given, and refuses them where there is no prompt.
    group.add_argument("--images", type=int, metavar="N", help="pictures that follow at once (default: 0)")
    group.add_argument(
        "--image-size",
        metavar="HEIGHTxWIDTH",
        help="pixels of those, of models whose pictures say their size: 64x48 is 8 x 6 latents at a patch of 8 "
        "(default: the tokenizer's size)",
    )
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"tokens of free decoding (default: {_MAX_NEW_TOKENS})"
    )
    group.add_argument("--max-images", type=int, metavar="N", help="pictures the model may begin itself; 0: text only")
    group.add_argument(
        "--negative-prompt",
        nargs="+",
        metavar="PART",
        help="what guidance leads away from, as --prompt (default: nothing)",
    )
    group.add_argument("--temperature", type=float, help="of text; 0 is greedy (default: the model's)")
    group.add_argument("--top-k", type=int, help="of text (default: the model's)")
    group.add_argument("--top-p", type=float, help="of text (default: the model's)")
    group.add_argument("--min-p", type=float, help="of text (default: the model's)")
    group.add_argument("--repetition-penalty", type=float, help="of text; 1 is none (default: the model's)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end behind this text")


FLAGS = (
    "--images",
    "--image-size",
    "--max-new-tokens",
    "--max-images",
    "--negative-prompt",
    "--temperature",
    "--top-k",
    "--top-p",
    "--min-p",
    "--repetition-penalty",
    "--stop",
)
"""Those that say how a prompt is answered."""


def parse_prompt(parts: Sequence[str]) -> "Prompt":
    """Parts of the command line as a prompt: `@file` is a picture, `@@` starts a text with one @."""
    prompt: list[str | Path] = []
    for part in parts:
        if part.startswith(PICTURE_MARK * 2):
            prompt.append(part[1:])
        elif part.startswith(PICTURE_MARK):
            prompt.append(Path(part[1:]))
        else:
            prompt.append(part)
    return prompt


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of "64x48"; None of None.

    Raises:
        ValueError: If the text says something else.
    """
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--image-size is {text!r}; write height and width in pixels, such as 64x48")
    return int(sides[0]), int(sides[1])


def change_sampling(pipeline: "DocumentPipeline", changes: Mapping[str, Any]) -> None:
    """Replace sampling defaults of a pipeline.

    Args:
        pipeline: Whatever it samples.
        changes: Options by what is sampled and dotted name, such as {"image.solver.order": 1}.

    Raises:
        ValueError: If nothing of that name is sampled, there is no such option, or its value is refused.
    """
    from latentlm.config import with_changes

    by_sampled: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        sampled, _, option = name.partition(".")
        if sampled not in pipeline.sampling or not option:
            known = ", ".join(f"{one}.NAME" for one in pipeline.sampling)
            raise ValueError(f"--set {name}: beside a --prompt this model knows {known}")
        by_sampled.setdefault(sampled, {})[option] = value
    for sampled, options in by_sampled.items():
        where = f"sampling of {sampled} of a '{pipeline.kind}'"
        pipeline.sampling[sampled] = with_changes(pipeline.sampling[sampled], options, where=where)


def answer(pipeline: "DocumentPipeline", arguments: argparse.Namespace, changes: Mapping[str, Any]) -> None:
    """Answer the prompts and write `answers.md`, `answers.json` and a PNG per picture.

    Args:
        pipeline: What answers.
        arguments: Of the command line.
        changes: Of the sampling; see `change_sampling`.

    Raises:
        ValueError: If a prompt or an option does not fit the model.
    """
    from latentlm.storage import write_file_atomically, write_json

    change_sampling(pipeline, changes)
    prompts = [parse_prompt(parts) for parts in arguments.prompt]
    options: dict[str, Any] = {
        "images": arguments.images or 0,
        "image_size": parse_size(arguments.image_size),
        "max_new_tokens": _MAX_NEW_TOKENS if arguments.max_new_tokens is None else arguments.max_new_tokens,
        "max_images": arguments.max_images,
        "negative_prompt": parse_prompt(arguments.negative_prompt) if arguments.negative_prompt else None,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "stop_strings": arguments.stop,
        "cfg_scale": arguments.cfg_scale,
        "num_inference_steps": arguments.steps,
        "solver": arguments.solver,
        "seed": arguments.seed,
        "precision": arguments.precision,
    }
    answers = _follow(pipeline, prompts, options)
    arguments.out.mkdir(parents=True, exist_ok=True)
    page, records = [], []
    for number, (parts, (answered, reason)) in enumerate(zip(arguments.prompt, answers, strict=True)):
        shown, listed = _written(arguments.out, number, answered)
        page.append(f"## {number}\n\n> {' '.join(parts)}\n\n{shown}\n")
        records.append({"prompt": parts, "seed": arguments.seed + number, "answer": listed, "finish_reason": reason})
    write_file_atomically(arguments.out / "answers.md", "\n".join(page).encode())
    write_json(arguments.out / "answers.json", {"model": arguments.model, "answers": records})
    print(f"\nanswers.md, answers.json and the pictures are in {arguments.out}")


def _follow(
    pipeline: "DocumentPipeline", prompts: Sequence["Prompt"], options: dict[str, Any]
) -> "list[tuple[tuple[RawPart, ...], str]]":
    """The answers, shown while they come: the text of a single prompt, a bar of latents otherwise."""
    from tqdm import tqdm

    from latentlm.generation.document_pipeline import AnswerEvent, TextDelta
    from latentlm.generation.requests import LatentEvent

    answers: dict[int, tuple[tuple[RawPart, ...], str]] = {}
    with tqdm(desc="answering", unit="latent", disable=None, leave=False) as bar:
        for event in pipeline.stream(prompts, **options):
            if isinstance(event, TextDelta) and len(prompts) == 1:
                bar.clear()
                print(event.text, end="", flush=True, file=sys.stdout)
            elif isinstance(event, LatentEvent):
                bar.update()
            elif isinstance(event, AnswerEvent):
                answers[event.request] = (event.parts, event.finish_reason)
    return [answers[number] for number in range(len(prompts))]


def _written(folder: Path, number: int, parts: "Sequence[RawPart]") -> tuple[str, list[dict[str, Any]]]:
    """An answer as Markdown and as plain values; its pictures and sounds are saved."""
    from PIL import Image

    from latentlm.data.audio import write_wav
    from latentlm.generation.prompts import Sound

    shown, listed = [], []
    for part in parts:
        if isinstance(part, str):
            shown.append(part)
            listed.append({"text": part})
        elif isinstance(part, Image.Image):
            name = f"{number:03d}_{len(listed)}.png"
            part.save(folder / name)
            shown.append(f"![picture]({name})")
            listed.append({"picture": name})
        elif isinstance(part, Sound):
            name = f"{number:03d}_{len(listed)}.wav"
            write_wav(folder / name, part.waveform, part.sample_rate)
            shown.append(f"[sound]({name})")
            listed.append({"sound": name})
        else:
            shown.append(f"(a picture of {part.num_tokens} tokens, which cannot be decoded)")
            listed.append({"broken_picture": part.num_tokens})
    return "\n\n".join(shown), listed
