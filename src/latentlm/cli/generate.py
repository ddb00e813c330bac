"""Draw images with a trained class-conditional model, or answer prompts with a model of text and pictures.

    latentlm generate RUN/model --labels 3,7 --out pictures
    latentlm generate RUN/model --prompt "A photo of a sneaker." --images 1 --out answers

Of labels it writes one PNG per image, grid.png with all of them, and generation.json with everything needed to draw
them again; of prompts answers.md, answers.json and the pictures. The same seed gives the same image or answer whatever
is made beside it.

--set NAME=VALUE changes any sampling option that the model was saved with, as its generation_config.json lists them.
Without --prompt NAME is one of the pictures' (cfg_scale, solver.order, guidance.step_schedule, ...; of models of codes
temperature, top_k, ...). With --prompt it begins with what is sampled: text.temperature, text.eos_ids,
image.solver.order, image.guidance.interval, image.top_k of models of codes, speech.cfg_scale, ...
"""

import argparse
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlm.cli import answers

if TYPE_CHECKING:
    from torch import Tensor

    from latentlm.generation.image_pipeline import ImagePipeline
    from latentlm.nn.precision import Precision

TAKES_RECIPE = False

_DEFAULT_NUM_IMAGES = 16
_DEFAULT_BATCH_SIZE = 64

_FLAGS_OF_CLASSES = ("--labels", "--num-images", "--batch-size", "--columns")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to draw, how, and where to put it."""
    parser.add_argument("model", help="a model folder (the `model` folder of a run) or a Hugging Face hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the pictures")
    parser.add_argument(
        "--labels", metavar="cat,3", help="classes, by name or number, repeated in turn; `null` draws without a class"
    )
    parser.add_argument("--num-images", type=int, metavar="N", help="default: one per label given, or 16")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; image i has seed + i (default: 0)")
    parser.add_argument("--cfg-scale", type=float, help="classifier-free guidance, 1 is none (default: the model's)")
    parser.add_argument("--steps", type=int, help="solver steps, or decoding iterations (default: the model's)")
    parser.add_argument("--solver", help="ddpm, ddim, dpm_multistep, dpm_singlestep, dpm_sde, euler or heun")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any sampling option of the model, such as temperature=0.9, or with --prompt text.temperature=0.9 and "
        "image.solver.order=1 (see above); may be repeated",
    )
    parser.add_argument("--batch-size", type=int, help=f"images drawn at a time (default: {_DEFAULT_BATCH_SIZE})")
    add_precision(parser)
    parser.add_argument("--columns", type=int, help="columns of the grid (default: about square)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a CUDA device if there is one)")
    answers.add_arguments(parser)
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--local-files-only", action="store_true", help="never touch the network")


def add_precision(parser: Any) -> None:
    """The flag of every command that draws."""
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the model's matrix products while it draws (default: float32; bfloat16 is faster)",
    )


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Load, draw, write."""
    _check(arguments)
    from latentlm.catalog import load
    from latentlm.cli.device import resolve_device
    from latentlm.config import to_mapping
    from latentlm.generation.document_pipeline import DocumentPipeline
    from latentlm.generation.image_pipeline import ImagePipeline
    from latentlm.pictures import picture_grid, save_picture, to_uint8
    from latentlm.storage import write_json

    pipeline = load(
        arguments.model,
        revision=arguments.revision,
        local_files_only=arguments.local_files_only,
        device=resolve_device(arguments.device),
    )
    if arguments.prompt:
        if not isinstance(pipeline, DocumentPipeline) or pipeline.text_tokenizer is None:
            raise ValueError(f"{arguments.model} holds a '{pipeline.kind}', which reads no prompts; give --labels")
        answers.answer(pipeline, arguments, read_assignments(arguments.set, flag="--set"))
        return 0
    if not isinstance(pipeline, ImagePipeline):
        raise ValueError(f"{arguments.model} holds a '{pipeline.kind}', which draws nothing")
    if pipeline.num_classes == 0:
        raise ValueError(f"{arguments.model} knows no classes; give it a --prompt")
    labels = choose_labels(arguments.labels, arguments.num_images, pipeline.num_classes, pipeline.label_names)
    seeds = list(range(arguments.seed, arguments.seed + len(labels)))
    changes = sampling_changes(
        pipeline, cfg_scale=arguments.cfg_scale, steps=arguments.steps, assignments=arguments.set
    )
    if arguments.solver is not None:
        changes["solver.name"] = arguments.solver
    sampling = pipeline.sampling_with(changes)
    batch_size = arguments.batch_size or _DEFAULT_BATCH_SIZE
    images = draw(pipeline, labels, seeds, sampling, batch_size=batch_size, precision=arguments.precision)

    arguments.out.mkdir(parents=True, exist_ok=True)
    digits = max(3, len(str(len(labels) - 1)))
    names = [f"{i:0{digits}d}_class{'null' if label is None else label}.png" for i, label in enumerate(labels)]
    for name, picture in zip(names, to_uint8(images), strict=True):
        save_picture(arguments.out / name, picture)
    save_picture(arguments.out / "grid.png", picture_grid(images, columns=arguments.columns))
    drawn = [
        {"file": name, "label": label, "seed": seed} for name, label, seed in zip(names, labels, seeds, strict=True)
    ]
    write_json(
        arguments.out / "generation.json",
        {"model": arguments.model, "sampling": to_mapping(sampling), "images": drawn},
    )
    print(f"{len(labels)} pictures and grid.png are in {arguments.out}")
    return 0


def choose_labels(
    text: str | None, num_images: int | None, num_classes: int, label_names: Sequence[str] = ()
) -> list[int | None]:
    """The class of every image to draw.

    Args:
        text: Comma-separated classes, or None for all in turn.
        num_images: How many images; the classes are repeated in turn. None means one per class given, or 16.
        num_classes: Of the model.
        label_names: Of the model's classes, if it has names; a name wins over a number.

    Raises:
        ValueError: If a class is neither a name nor a number of the model's.
    """
    choice: list[int | None] = list(range(num_classes))
    if text is not None:
        words = [word.strip() for word in text.split(",")]
        choice = [None if word == "null" else _label(word, num_classes, label_names) for word in words]
    count = num_images or (_DEFAULT_NUM_IMAGES if text is None else len(choice))
    return (choice * math.ceil(count / len(choice)))[:count]


def draw(
    pipeline: "ImagePipeline",
    labels: Sequence[int | None],
    seeds: Sequence[int],
    sampling: Any,
    *,
    batch_size: int,
    precision: "Precision" = "float32",
) -> "Tensor":
    """Images [N, C, H, W] in [-1, 1], on the CPU, under a progress bar that moves once per batch."""
    import torch
    from tqdm import tqdm

    batches = []
    with tqdm(total=len(labels), desc="drawing", unit="image") as bar:
        for start in range(0, len(labels), batch_size):
            chosen = slice(start, start + batch_size)
            batch = pipeline.generate_images(
                labels[chosen], seeds=seeds[chosen], sampling=sampling, precision=precision
            )
            batches.append(batch.cpu())
            bar.update(len(batch))
    return torch.cat(batches)


def _check(arguments: argparse.Namespace) -> None:
    for name in ("num_images", "steps", "batch_size", "columns"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    for name in ("images", "max_images", "max_new_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 0")
    if arguments.prompt and (given := _given(arguments, _FLAGS_OF_CLASSES)):
        raise ValueError(f"{given[0]} is for pictures of classes, but there is a --prompt; leave one of them out")
    if not arguments.prompt and (given := _given(arguments, answers.FLAGS)):
        raise ValueError(
            f"{given[0]} says how a --prompt is answered, but there is none; how pictures of classes are drawn is "
            "said by --set NAME=VALUE"
        )
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise ValueError(f"{arguments.out} exists already and is not empty; choose another folder, or remove it")


def _given(arguments: argparse.Namespace, flags: Sequence[str]) -> list[str]:
    """Those of the flags that the command line has; their defaults are None or an empty list."""
    values = {flag: getattr(arguments, flag.removeprefix("--").replace("-", "_")) for flag in flags}
    return [flag for flag, value in values.items() if value not in (None, [])]


def _label(word: str, num_classes: int, label_names: Sequence[str]) -> int:
    if word in label_names:
        return label_names.index(word)
    if word.isdecimal() and int(word) < num_classes:
        return int(word)
    # A number is no misspelt name, even where classes are called by numbers.
    near = [] if word.lstrip("-").isdecimal() else difflib.get_close_matches(word, label_names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f", 0 to {num_classes - 1}, or null"
    raise ValueError(f"--labels: {word!r} is none of the model's classes{hint}")


def sampling_changes(
    pipeline: "ImagePipeline", *, cfg_scale: float | None, steps: int | None, assignments: Sequence[str]
) -> dict[str, Any]:
    """What the flags change of a pipeline's sampling, for `ImagePipeline.sampling_with`.

    Args:
        pipeline: Knows which option counts its steps.
        cfg_scale: Guidance; None leaves it.
        steps: Solver steps or decoding iterations; None leaves them.
        assignments: Further options as text, "NAME=VALUE".

    Raises:
        ValueError: If the model takes no steps, or an assignment cannot be read.
    """
    changes: dict[str, Any] = {}
    if cfg_scale is not None:
        changes["cfg_scale"] = cfg_scale
    if steps is not None:
        if pipeline.steps_field is None:
            raise ValueError(f"a '{pipeline.kind}' draws its tokens one by one: there are no steps to choose")
        changes[pipeline.steps_field] = steps
    return changes | read_assignments(assignments, flag="--set")


def read_assignments(assignments: Sequence[str], *, flag: str) -> dict[str, Any]:
    """Options given as text, NAME=VALUE, the value as in YAML.

    Args:
        assignments: Such as ["temperature=0.9"].
        flag: Their flag, for the error message.

    Raises:
        ValueError: If one cannot be read.
    """
    import yaml

    values: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign:
            raise ValueError(f"{flag} {assignment}: write NAME=VALUE, such as temperature=0.9")
        try:
            values[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{flag} {assignment}: {value!r} is not a value as YAML writes it") from error
    return values
