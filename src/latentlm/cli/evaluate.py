"""Score a trained tokenizer, generator, speaker or model of documents: distances, accuracy, word errors and more.

    latentlm evaluate RUN/model --test-data fashion_mnist_test.npz --out scores
    latentlm evaluate RUN/model --test-data ... --part validation --cfg-scale 1 1.5 2 3 --out choice
    latentlm evaluate RUN/model --test-data ... --cfg-scale 1.5 --raw --out result
    latentlm evaluate RUN/model --measures text image_to_text questions --out documents
    latentlm evaluate RUN/model --cfg-scale 2 4 --num-samples 200 --speakers theo --out voices

The data set is the one of RUN/recipe.yaml, unless told otherwise. Settings are chosen on the part `validation`, where
the judge of the final scores has no say, and then the part `test` is scored once. Classifiers that judge are trained at
the first call on a data set (minutes) and kept. Writes scores.json, scores.md and, for generators, samples.png.

Models of text and pictures are measured by the protocol document_model, as in experiments/documents_table3.yaml: of
several values of --cfg-scale the one is taken whose validation pictures are nearest to real ones. --clip-weights and
--inception-weights bring networks of your own that score the pictures as well. Tokenizers of sound are measured by the
protocol speech_tokenizer, and models that speak by text_to_speech, as in experiments/speech_*.yaml.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlm.cli import evaluate_documents, evaluate_speech
from latentlm.cli.generate import add_precision

if TYPE_CHECKING:
    from torch import Tensor

    from latentlm.data import ImageDataConfig
    from latentlm.evaluation.generator_report import GeneratorReport
    from latentlm.evaluation.image_protocol import Weights
    from latentlm.evaluation.image_scores import LabelledImages
    from latentlm.evaluation.judges import Judges
    from latentlm.generation.image_pipeline import ImagePipeline
    from latentlm.generation.pipeline_folder import AnyImageTokenizer

TAKES_RECIPE = False

_DEFAULT_JUDGES = Path("~/.cache/latentlm/judges")
_ROWS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to score, against what, and how."""
    parser.add_argument("model", help="a model folder (the `model` folder of a run) or a Hugging Face hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for scores and pictures")
    data = parser.add_argument_group("data")
    data.add_argument("--recipe", metavar="FILE", help="whose data set it is (default: recipe.yaml beside MODEL)")
    data.add_argument("--data", metavar="PATH", help="training pictures, instead of the recipe's data.path")
    data.add_argument("--test-data", metavar="PATH", help="test pictures, instead of the recipe's data.test_path")
    data.add_argument("--part", choices=("test", "validation"), default="test", help="default: test")
    drawing = parser.add_argument_group("generators")
    drawing.add_argument(
        "--num-samples", type=int, metavar="N", help="default: 5000, for validation 1000, or all that the part has"
    )
    drawing.add_argument("--cfg-scale", type=float, nargs="+", metavar="S", help="a row each (default: the model's)")
    drawing.add_argument("--steps", type=int, help="solver steps, or decoding iterations (default: the model's)")
    drawing.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other sampling option")
    drawing.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    drawing.add_argument("--raw", action="store_true", help="score the weights before averaging too (RUN/model_raw)")
    drawing.add_argument("--inception-weights", type=Path, metavar="FILE", help="adds FID and Inception score")
    drawing.add_argument("--batch-size", type=int, default=250, help="pictures drawn at a time (default: 250)")
    add_precision(drawing)
    evaluate_documents.add_arguments(parser)
    evaluate_speech.add_arguments(parser)
    parser.add_argument(
        "--judges", type=Path, default=_DEFAULT_JUDGES, metavar="DIR", help=f"their cache (default: {_DEFAULT_JUDGES})"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a CUDA device if there is one)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--local-files-only", action="store_true", help="never touch the network")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Load, draw or reconstruct, score, write."""
    _check(arguments)
    from latentlm.catalog import load
    from latentlm.cli.device import resolve_device
    from latentlm.evaluation.judges import load_judges
    from latentlm.generation.document_pipeline import DocumentPipeline
    from latentlm.generation.image_pipeline import ImagePipeline
    from latentlm.storage import write_file_atomically, write_json
    from latentlm.tokenizers.image import ImageTokenizer
    from latentlm.tokenizers.vq_image import VQImageTokenizer

    device = resolve_device(arguments.device)
    model = load(
        arguments.model, revision=arguments.revision, local_files_only=arguments.local_files_only, device=device
    )
    if evaluate_speech.is_speech(model):
        return evaluate_speech.score(model, arguments)
    if arguments.speakers:
        raise ValueError(f"{arguments.model} does not speak; leave --speakers out")
    if isinstance(model, DocumentPipeline) and model.text_tokenizer is not None:
        return evaluate_documents.score(model, arguments)
    if not isinstance(model, ImagePipeline | ImageTokenizer | VQImageTokenizer):
        raise ValueError(f"{arguments.model} holds a '{model.kind}', for which there are no measures here")
    _refuse_other_flags(arguments, model.kind, draws=isinstance(model, ImagePipeline))
    tokenizer = model.image_tokenizer if isinstance(model, ImagePipeline) else model
    data = _data_config(arguments, tokenizer)
    judges = load_judges(data, cache_dir=arguments.judges.expanduser(), progress=True)
    if isinstance(model, ImagePipeline):
        models: dict[Weights, ImagePipeline] = {"ema": model}
        if arguments.raw:
            models["raw"] = load(_raw_folder(arguments.model), device=device)
        report, samples = _score_generators(models, judges, arguments)
    else:
        report, samples = _score_tokenizer(model, judges, arguments), None

    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "scores.json", report.as_json())
    text = f"# {arguments.model}\n\n{report.as_markdown()}"
    if samples is not None:
        _save_samples(arguments.out / "samples.png", samples)
        text += "\n![samples](samples.png)\n"
    write_file_atomically(arguments.out / "scores.md", text.encode())
    print(f"\n{report.as_markdown()}\nscores.json and scores.md are in {arguments.out}")
    return 0


def _score_generators(
    models: "dict[Weights, ImagePipeline]", judges: "Judges", arguments: argparse.Namespace
) -> "tuple[GeneratorReport, LabelledImages]":
    """All rows, and the samples of the first."""
    from latentlm.cli.generate import sampling_changes
    from latentlm.config import to_mapping
    from latentlm.evaluation import image_protocol
    from latentlm.evaluation.generator_report import GeneratorRow, make_report
    from latentlm.evaluation.inception import InceptionJudge

    tested = arguments.part == "test"
    available = len(judges.test if tested else judges.validation)
    count = arguments.num_samples or min(5000 if tested else 1000, available)
    protocol = image_protocol.ImageProtocol(
        num_samples=count,
        num_validation_samples=count,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
    )
    inception = None
    if arguments.inception_weights is not None:
        inception = InceptionJudge(arguments.inception_weights, judges.panel.reference.images, progress=True)
    rows, shown = [], None
    for weights, pipeline in models.items():
        for cfg_scale in arguments.cfg_scale or [None]:
            changes = sampling_changes(pipeline, cfg_scale=cfg_scale, steps=arguments.steps, assignments=arguments.set)
            sampling = pipeline.sampling_with(changes)
            samples = image_protocol.draw_samples(
                pipeline, judges, protocol, part=arguments.part, sampling=sampling, progress=True
            )
            shown = shown or samples
            score = image_protocol.score_samples if tested else image_protocol.selection_scores
            rows.append(
                GeneratorRow(
                    weights=weights,
                    sampling=to_mapping(sampling),
                    scores=score(samples, judges),
                    inception=None if inception is None else inception.score(samples.images),
                )
            )
    assert shown is not None, "there is at least one row"
    floor = image_protocol.floor if tested else image_protocol.selection_floor
    report = make_report(
        model=arguments.model,
        kind=models["ema"].kind,
        part=arguments.part,
        protocol=protocol,
        rows=tuple(rows),
        floor=floor(judges, count),
        judges=judges,
    )
    return report, shown


def _score_tokenizer(tokenizer: "AnyImageTokenizer", judges: "Judges", arguments: argparse.Namespace) -> Any:
    from latentlm.evaluation.tokenizer_scores import score_tokenizer
    from latentlm.pretrained import resolve_folder
    from latentlm.storage import read_json

    folder = resolve_folder(
        arguments.model, revision=arguments.revision, local_files_only=arguments.local_files_only, verify=False
    )
    report = folder / "tokenizer_report.json"  # written by training; a folder made by hand may have none
    return score_tokenizer(
        tokenizer,
        judges,
        beta=read_json(report)["beta"] if report.is_file() else None,
        num_images=arguments.num_samples,
        batch_size=arguments.batch_size,
        progress=True,
    )


def _refuse_other_flags(arguments: argparse.Namespace, kind: str, *, draws: bool) -> None:
    """Flags that say nothing to a model of classes, or to a tokenizer of pictures; before judges are trained."""
    given = {
        "--measures": bool(arguments.measures),
        "--option": bool(arguments.option),
        "--judge-recipe": arguments.judge_recipe is not None,
    }
    if wrong := [flag for flag, is_given in given.items() if is_given]:
        raise ValueError(
            f"{arguments.model} holds a '{kind}', for which there is no {wrong[0]}: that is for models of documents "
            "and of speech"
        )
    if arguments.clip_weights is not None:
        raise ValueError(
            f"{arguments.model} holds a '{kind}', whose pictures have no captions; leave --clip-weights out"
        )
    if draws:
        return
    if arguments.part != "test":
        raise ValueError("a tokenizer has nothing to choose on validation pictures; leave --part out")
    given = {
        "--cfg-scale": bool(arguments.cfg_scale),
        "--steps": arguments.steps is not None,
        "--set": bool(arguments.set),
        "--raw": arguments.raw,
        "--inception-weights": arguments.inception_weights is not None,
    }
    if wrong := [flag for flag, is_given in given.items() if is_given]:
        raise ValueError(f"{arguments.model} holds a '{kind}', which draws nothing; leave {wrong[0]} out")


def _data_config(arguments: argparse.Namespace, tokenizer: "AnyImageTokenizer") -> "ImageDataConfig":
    """The recipe's data set with the flags over it, or one of the flags alone."""
    import dataclasses

    from latentlm.cli.recipes import read_recipe
    from latentlm.data import DataError, ImageDataConfig, open_images

    beside = Path(arguments.model).resolve().parent / "recipe.yaml"
    recipe = arguments.recipe or (str(beside) if beside.is_file() else None)
    changes = {"path": arguments.data, "test_path": arguments.test_data}
    changes = {name: value for name, value in changes.items() if value is not None}
    if recipe is not None:
        data = dataclasses.replace(read_recipe(recipe, []).data, **changes)
    elif arguments.data is None:
        raise ValueError(
            f"there is no recipe.yaml beside {arguments.model}, so the data set is not known: give --recipe FILE, or "
            "--data PATH with --test-data PATH"
        )
    else:
        config = tokenizer.config
        data = ImageDataConfig(image_size=config.image_size, num_channels=config.num_channels, **changes)
    try:
        open_images(data, part="test")
    except DataError as error:
        if data.test_path is not None:
            raise
        raise ValueError(f"{error} - give the test pictures with --test-data PATH") from error
    return data


def _raw_folder(model: str) -> Path:
    folder = Path(model).resolve().with_name("model_raw")
    if not folder.is_dir():
        raise ValueError(f"--raw: there is no folder {folder}; training writes it beside the averaged weights")
    return folder


def _save_samples(path: Path, samples: "LabelledImages") -> None:
    """The first samples of each class, one column per class."""
    import torch

    from latentlm.pictures import picture_grid, save_picture

    classes = samples.labels.unique()
    columns: list[Tensor] = [samples.images[samples.labels == label][:_ROWS_SHOWN] for label in classes]
    rows = min(len(column) for column in columns)
    ordered = torch.stack([column[:rows] for column in columns], dim=1).flatten(0, 1)
    save_picture(path, picture_grid(ordered, columns=len(columns)))


def _check(arguments: argparse.Namespace) -> None:
    for name in ("num_samples", "steps", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise ValueError(f"{arguments.out} exists already and is not empty; choose another folder, or remove it")
    if arguments.inception_weights is not None and arguments.part != "test":
        raise ValueError("--inception-weights scores the part test; a judge never chooses settings")
