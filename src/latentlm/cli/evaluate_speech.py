"""`latentlm evaluate` for tokenizers of sound and models that speak: the protocols of experiments on one folder.

The recipe beside the model says which recordings it is about. A tokenizer is scored on their test part, speakers heard
in training and others apart. A model speaks as people whom it never heard: of several values of --cfg-scale the one is
taken with the fewest word errors on validation strings, and then every trial is said and judged once.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SIDE_BY_SIDE = 50
"""Texts spoken at a time, at most: the default of --batch-size is for pictures."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose voices are imitated; everything else is shared with the other kinds of models."""
    group = parser.add_argument_group("speech")
    group.add_argument(
        "--speakers",
        nargs="+",
        metavar="NAME",
        help="whose voices to imitate (default: everybody of the test recordings that training has not heard)",
    )


def is_speech(model: Any) -> bool:
    """Whether a loaded model is a tokenizer of sound, or speaks and draws no pictures."""
    from latentlm.generation.speaker import Speaker
    from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoder

    tokenizers = getattr(model, "tokenizers", {})
    speaks_only = "speech" in tokenizers and "image" not in tokenizers
    return speaks_only or isinstance(model, SpeechAutoencoder | Speaker)


def score(model: Any, arguments: argparse.Namespace) -> int:
    """Measure a loaded model; writes scores.json, scores.md and, of a model that speaks, spectrograms.

    Raises:
        ValueError: If a flag is not for such models, or recipe, data or judges are missing.
    """
    from latentlm.config import from_mapping, to_mapping
    from latentlm.experiments.protocol import MeasureContext
    from latentlm.experiments.speech_report import text_to_speech_report, tokenizer_report
    from latentlm.experiments.speech_synthesis import TextToSpeechOptions, text_to_speech
    from latentlm.experiments.speech_tokenizers import SpeechTokenizerOptions, speech_tokenizer
    from latentlm.storage import write_file_atomically, write_json
    from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoder

    measure: Callable[[MeasureContext], dict[str, Any]]
    if isinstance(model, SpeechAutoencoder):
        options_class, measure, report = SpeechTokenizerOptions, speech_tokenizer, tokenizer_report
        settings = _tokenizer_options(arguments)
    else:
        options_class, measure, report = TextToSpeechOptions, text_to_speech, text_to_speech_report
        settings = _speaking_options(arguments)
    options = from_mapping(options_class, settings, where="options")
    folder = Path(arguments.model).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        context = MeasureContext(
            cell=folder.name,
            axes={},
            run_dir=folder.parent,
            recipe=_recipe(arguments),
            options=settings,
            scratch_dir=Path(scratch) / "partial",
            cache_dir=arguments.judges.expanduser(),
            assets_dir=Path(scratch) / "pictures",
            load=lambda folder: model,  # the one folder that is asked for is loaded already, on its device
        )
        result = measure(context)
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = f"# {arguments.model}\n\n{report(result)}"
        for name in ("reference", "continuation"):
            drawn = context.picture_path(name)
            if drawn.is_file():
                shutil.copy(drawn, arguments.out / f"{name}.png")
                text += f"\nReal recordings above what was said, protocol {name}:\n\n![{name}]({name}.png)\n"
    content = {"model": arguments.model, "kind": model.kind, "options": to_mapping(options), "result": result}
    write_json(arguments.out / "scores.json", content)
    write_file_atomically(arguments.out / "scores.md", text.encode())
    print(f"\n{report(result)}\nscores.json and scores.md are in {arguments.out}")
    return 0


def _recipe(arguments: argparse.Namespace) -> Any:
    """The recipe that is given, or that of the model's run."""
    from latentlm.cli.evaluate_documents import recipe_beside
    from latentlm.cli.recipes import read_recipe

    name = arguments.recipe or recipe_beside(Path(arguments.model))
    if name is None:
        raise ValueError(
            f"there is no recipe.yaml beside {arguments.model}, so its recordings are not known: give --recipe FILE"
        )
    return read_recipe(name, [])


def _tokenizer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    _refuse(arguments, "a tokenizer of sound", ("cfg_scale", "steps", "set", "speakers"))
    settings = _shared_options(arguments, count="num_utterances")
    return {**settings, **_assigned(arguments)}


def _speaking_options(arguments: argparse.Namespace) -> dict[str, Any]:
    from latentlm.cli.generate import read_assignments

    _refuse(arguments, "a model that speaks", ())
    sampling = {f"sampling.{name}": value for name, value in read_assignments(arguments.set, flag="--set").items()}
    speaking: dict[str, Any] = {"precision": arguments.precision, **sampling}
    if arguments.steps is not None:
        speaking["num_inference_steps"] = arguments.steps
    settings = {
        **_shared_options(arguments, count="num_trials"),
        "weights": "raw" if Path(arguments.model).resolve().name == "model_raw" else "ema",
        "speaking": speaking,
        "trials": [{} if scale is None else {"cfg_scale": scale} for scale in arguments.cfg_scale or [None]],
        "batch_size": min(arguments.batch_size, _SIDE_BY_SIDE),
    }
    if arguments.speakers:
        settings["speakers"] = arguments.speakers
    return {**settings, **_assigned(arguments)}


def _shared_options(arguments: argparse.Namespace, *, count: str) -> dict[str, Any]:
    data = {"path": arguments.data, "test_path": arguments.test_data}
    settings: dict[str, Any] = {"seed": arguments.seed}
    settings["data"] = {name: value for name, value in data.items() if value is not None}
    if arguments.num_samples is not None:
        settings[count] = arguments.num_samples
    return settings


def _assigned(arguments: argparse.Namespace) -> Mapping[str, Any]:
    from latentlm.cli.generate import read_assignments

    return read_assignments(arguments.option, flag="--option")


def _refuse(arguments: argparse.Namespace, kind: str, others: tuple[str, ...]) -> None:
    """Flags that say nothing to such a model."""
    given = {
        "--raw": arguments.raw,
        "--inception-weights": arguments.inception_weights is not None,
        "--clip-weights": arguments.clip_weights is not None,
        "--measures": bool(arguments.measures),
        "--judge-recipe": arguments.judge_recipe is not None,
        "--part validation": arguments.part != "test",
    }
    given |= {f"--{name.replace('_', '-')}": bool(getattr(arguments, name)) for name in others}
    if wrong := [flag for flag, is_given in given.items() if is_given]:
        raise ValueError(
            f"{arguments.model} holds {kind}, for which there is no {wrong[0]}: settings are chosen on validation "
            "strings anyway, the rest is told by --option NAME=VALUE, and RUN/model_raw is a model too"
        )
