"""`latentlm evaluate` for models of documents: the measures of the protocol `document_model` on one trained folder.

The recipe beside the model says which documents it is about; their test parts are scored once, after the guidance has
been chosen among the values of --cfg-scale on validation pictures.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm.generation.document_pipeline import DocumentPipeline

_PICTURES = "pictures.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, and by whom."""
    group = parser.add_argument_group("models of text and pictures")
    group.add_argument(
        "--measures",
        nargs="+",
        metavar="NAME",
        help="text, image_to_text, text_to_image, captions, questions, few_shot, switching (default: all)",
    )
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of the protocol document_model, such as num_questions=100; may be repeated",
    )
    group.add_argument(
        "--clip-weights",
        type=Path,
        metavar="FOLDER",
        help="CLIP weights as transformers saves them; adds the CLIP score of drawn pictures, beside that of real ones",
    )
    group.add_argument(
        "--judge-recipe",
        metavar="FILE",
        help="whose data set holds the pictures of all pools, in the order of the pools, for training judges (default: "
        "recipe.yaml beside the image tokenizer that the recipe names)",
    )


def score(pipeline: "DocumentPipeline", arguments: argparse.Namespace) -> int:
    """Measure a loaded model; writes scores.json, scores.md and the first pictures that were drawn.

    Raises:
        ValueError: If a flag is not for models of documents, or recipe, data or judges are missing.
    """
    from latentlm.catalog import build
    from latentlm.config import from_mapping, to_mapping
    from latentlm.experiments.document_options import DocumentModelOptions
    from latentlm.experiments.document_protocols import document_model
    from latentlm.experiments.document_report import document_report
    from latentlm.experiments.protocol import MeasureContext
    from latentlm.storage import write_file_atomically, write_json

    _refuse_other_flags(arguments)
    recipe = _recipe(arguments)
    settings = _options(pipeline, recipe, arguments)
    options = from_mapping(DocumentModelOptions, settings, where="options")
    model = Path(arguments.model).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        context = MeasureContext(
            cell=model.name,
            axes={},
            run_dir=model.parents[1] if options.step is not None else model.parent,
            recipe=_around_model(recipe, arguments),
            options=settings,
            scratch_dir=Path(scratch) / "partial",
            cache_dir=arguments.judges.expanduser(),
            assets_dir=Path(scratch) / "pictures",
            load=lambda folder: pipeline,  # the one folder that is asked for is loaded already, on its device
        )
        result = document_model(context, build=build)
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = f"# {arguments.model}\n\n{document_report(result, options)}"
        drawn = context.picture_path("text_to_image")
        if drawn.is_file():
            shutil.copy(drawn, arguments.out / _PICTURES)
            text += f"\nPictures of the first captions:\n\n![pictures]({_PICTURES})\n"
    content = {"model": arguments.model, "kind": pipeline.kind, "options": to_mapping(options), "result": result}
    write_json(arguments.out / "scores.json", content)
    write_file_atomically(arguments.out / "scores.md", text.encode())
    print(f"\n{document_report(result, options)}\nscores.json and scores.md are in {arguments.out}")
    return 0


def _refuse_other_flags(arguments: argparse.Namespace) -> None:
    """Flags that say something about pictures of classes alone."""
    given = {
        "--raw": arguments.raw,
        "--data": arguments.data is not None,
        "--test-data": arguments.test_data is not None,
        "--part validation": arguments.part != "test",
    }
    if wrong := [flag for flag, is_given in given.items() if is_given]:
        raise ValueError(
            f"{arguments.model} holds a model of documents, for which there is no {wrong[0]}: its recipe (--recipe) "
            "names the data, settings are chosen on validation pictures anyway, and RUN/model_raw is a model too"
        )


def _recipe(arguments: argparse.Namespace) -> Any:
    """The recipe that is given, or that of the model's run."""
    from latentlm.cli.recipes import read_recipe
    from latentlm.training.objectives.documents import DocumentRecipe

    name = arguments.recipe or recipe_beside(Path(arguments.model))
    if name is None:
        raise ValueError(
            f"there is no recipe.yaml beside {arguments.model}, so its documents are not known: give --recipe FILE"
        )
    recipe = read_recipe(name, [])
    if not isinstance(recipe, DocumentRecipe):
        raise ValueError(
            f"{arguments.model} holds a model of documents, but {name} is a recipe of kind {recipe.kind!r}; give "
            "another --recipe FILE"
        )
    return recipe


def recipe_beside(model: Path) -> Path | None:
    """recipe.yaml of the run that a model folder belongs to: RUN/model, RUN/model_raw or RUN/model_at/STEP."""
    from latentlm.training.trainer import KEPT_FOLDER

    run_dir = model.resolve().parent
    run_dir = run_dir.parent if run_dir.name == KEPT_FOLDER else run_dir
    return run_dir / "recipe.yaml" if (run_dir / "recipe.yaml").is_file() else None


def _around_model(recipe: Any, arguments: argparse.Namespace) -> Any:
    """The recipe with the tokenizer of pictures in the model's own folder, and without weights to start from."""
    import dataclasses

    from latentlm.pretrained import resolve_folder

    folder = resolve_folder(
        arguments.model, revision=arguments.revision, local_files_only=arguments.local_files_only, verify=False
    )
    changes: dict[str, Any] = {"tokenizer": str(folder / "tokenizers" / "image")}
    if getattr(recipe, "init_from", None) is not None:
        changes["init_from"] = None
    return dataclasses.replace(recipe, **changes)


def _options(pipeline: "DocumentPipeline", recipe: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags as options of the protocol."""
    from latentlm.cli.generate import read_assignments
    from latentlm.experiments.document_options import MEASURES

    model = Path(arguments.model).resolve()
    has_text = any(source.data is not None for source in recipe.sources.values())
    settings: dict[str, Any] = {
        "measures": arguments.measures or [name for name in MEASURES if has_text or name != "text"],
        "weights": "raw" if model.name == "model_raw" else "ema",
        "step": _kept_step(model),
        "trials": [_sampling(pipeline, cfg_scale, arguments) for cfg_scale in arguments.cfg_scale or [None]],
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
    }
    if arguments.num_samples is not None:
        settings["num_pictures"] = arguments.num_samples
    brought = {"clip_weights": arguments.clip_weights, "inception_weights": arguments.inception_weights}
    settings |= {name: str(path) for name, path in brought.items() if path is not None}
    settings |= read_assignments(arguments.option, flag="--option")
    draws = "text_to_image" in settings["measures"]
    if not draws and (given := [name for name, path in brought.items() if path is not None]):
        raise ValueError(
            f"--{given[0].replace('_', '-')} scores pictures of captions, but --measures leaves text_to_image out"
        )
    chooses = "switching" in settings["measures"] and len(settings["trials"]) > 1
    if (draws or chooses) and "judge_data" not in settings and _num_pools(recipe) > 1:
        settings["judge_data"] = _judge_data(recipe, arguments)
    return settings


def _kept_step(model: Path) -> int | None:
    from latentlm.training.trainer import KEPT_FOLDER

    return int(model.name) if model.parent.name == KEPT_FOLDER and model.name.isdecimal() else None


def _sampling(pipeline: "DocumentPipeline", cfg_scale: float | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """One setting of drawing pictures, as changes of the model's own."""
    from latentlm.cli.generate import read_assignments

    changes: dict[str, Any] = {} if cfg_scale is None else {"cfg_scale": cfg_scale}
    if arguments.steps is not None:
        if not hasattr(pipeline.sampling.get("image"), "solver"):
            raise ValueError(f"a '{pipeline.kind}' draws its tokens one by one: there are no steps to choose")
        changes["solver.num_inference_steps"] = arguments.steps
    return changes | read_assignments(arguments.set, flag="--set")


def _num_pools(recipe: Any) -> int:
    return len({noun for source in recipe.sources.values() if source.composed for noun in source.composed.pools})


def _judge_data(recipe: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The data set that holds the pictures of all pools: that of the image tokenizer, which has seen them all."""
    from latentlm.cli.recipes import read_recipe
    from latentlm.config import to_mapping

    beside = None if recipe.tokenizer is None else recipe_beside(Path(recipe.tokenizer))
    name = arguments.judge_recipe or beside
    if name is None:
        raise ValueError(
            "pictures of several pools are judged together, but no data set of them all is known: give --judge-recipe "
            "FILE, such as the recipe of the image tokenizer, or leave out text_to_image (--measures)"
        )
    return to_mapping(read_recipe(name, []).data)
