"""The result of `document_protocols.document_model` as tables for people: numbers beside their N and baselines."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latentlm.evaluation.clip_score import ClipScores
from latentlm.evaluation.inception import InceptionScores
from latentlm.experiments.document_options import DocumentModelOptions

Result = Mapping[str, Any]

_NO_VALUE = "–"


def document_report(result: Result, options: DocumentModelOptions) -> str:
    """Markdown with a section for each measure that was taken.

    Args:
        result: Of `document_model`.
        options: That it was measured with.
    """
    sections = [section for name, show in _SECTIONS.items() if name in result for section in show(result[name])]
    trained, seconds = result["trained"], sum(result["seconds"].values())
    sections.append(
        f"{result['parameters']:,} parameters, trained for {trained['steps']:,} steps ({trained['tokens']:,} tokens). "
        f"Test documents of seed {options.seed}; shares with 95% intervals by the bootstrap over them, means with "
        f"standard errors. Answers are the likeliest tokens. Blind: with the pictures of another document. "
        f"Measured in {seconds:,.0f} s."
    )
    return "\n\n".join(sections) + "\n"


def _text(result: Result) -> list[str]:
    rows = [
        [
            name,
            part,
            f"{one['num_targets']:,}",
            f"{one['num_bytes']:,}",
            _number(one["perplexity"], ".3f"),
            _number(one["bits_per_byte"], ".4f"),
        ]
        for part, by_source in result.items()
        for name, one in by_source.items()
    ]
    heads = ["source", "part", "tokens", "bytes", "perplexity ↓", "bits per byte ↓"]
    return ["## Text", _table(heads, rows)]


def _image_to_text(result: Result) -> list[str]:
    rows = [
        [
            title,
            f"{one['num_documents']:,}",
            f"{one['num_targets']:,}",
            f"{one['nats_per_token']:.4f} ± {one['standard_error']:.4f}",
            _number(one["perplexity"], ".4f"),
        ]
        for title, one in (("own picture", result["model"]), ("another's (blind)", result["blind"]))
    ]
    heads = ["captions after", "captions", "tokens", "nats per token ↓", "perplexity ↓"]
    return [
        "## Captions, given pictures",
        _table(heads, rows),
        "The own caption among those of all classes, in the same phrasing:",
        _choices("captions after", {"own picture": result["classified"]}),
    ]


def _text_to_image(result: Result) -> list[str]:
    titles = {"scores": "drawn", "floor": "real test pictures", "ceiling": "those through the tokenizer"}
    distances = ("frechet", "frechet_second_space", "kernel")
    rows = [
        [
            title,
            noun,
            f"{one['num_images']:,}",
            *(f"{one[name]:.3f}" for name in distances),
            _share(one["accuracy"]),
            f"{one['precision']:.3f}",
            f"{one['recall']:.3f}",
        ]
        for row, title in titles.items()
        for noun, one in result[row].items()
    ]
    heads = [
        "",
        "pool",
        "N",
        "Fréchet, judge ↓",
        "Fréchet, second space ↓",
        "kernel distance ↓",
        "shows what the caption says ↑",
        "precision ↑",
        "recall ↑",
    ]
    consistency = [
        [
            row,
            f"{one['num_pictures']:,}",
            f"{one['num_captions']:,}",
            *(_share(one[name]) for name in ("at_1", "at_5")),
        ]
        for row, one in result["consistency"].items()
        if isinstance(one, Mapping)
    ]
    tried = [
        f"{_settings(trial['changes'])}: {_number(trial['selector_frechet'], '.3f')}" for trial in result["trials"]
    ]
    chosen = f"Drawn with {_settings(result['chosen'])}"
    chosen += f", the nearest to validation pictures in the selector's eyes ({'; '.join(tried)})." if tried else "."
    judges = result["judges"]
    return [
        "## Pictures of captions",
        _table(heads, rows),
        f"{chosen} {result['pictures_per_second']:.1f} pictures per second. The judge is right on "
        f"{judges['judge_accuracy']:.1%} of real test pictures; distances compare only between equal N and judges "
        f"({judges['fingerprint'][:16]}).",
        _table(["R-precision", "pictures", "captions", "@1 ↑", "@5 ↑"], consistency),
        *_foreign_scores(result, titles),
    ]


def _foreign_scores(result: Result, titles: Mapping[str, str]) -> list[str]:
    """Of networks that the user brought."""
    columns = {"clip": ClipScores.columns, "inception": InceptionScores.columns}
    return [
        _table(
            ["", *(title for title, _ in shown.values())],
            [
                [title, *(format(result[judge][row][name], spec) for name, (_, spec) in shown.items())]
                for row, title in titles.items()
            ],
        )
        for judge, shown in columns.items()
        if judge in result
    ]


def _captions(result: Result) -> list[str]:
    rows = [
        [
            title,
            f"{one['num_captions']:,}",
            f"{one['references_per_caption']:.0f}",
            f"{one['cider']:.3f}",
            _share(one["exact_match"]),
            _share(one["class_named"]),
        ]
        for title, one in (("model", result["model"]), ("blind", result["blind"]))
    ]
    heads = ["", "N", "references each", "CIDEr-D ↑", "exact match ↑", "class named ↑"]
    return ["## Captions that the model writes", _table(heads, rows)]


def _questions(result: Result) -> list[str]:
    rows = [
        [task.replace("_", " "), f"{of_task['model']['num']:,}", *_accuracies(of_task)]
        for task, of_task in result.items()
    ]
    return ["## Questions about pictures", _table(["task", "N", "model ↑", "blind", "majority"], rows)]


def _few_shot(result: Result) -> list[str]:
    written = [
        [shots, f"{one['model']['num']:,}", *_accuracies(one)[:2], f"{one['chance']:.0%}"]
        for shots, one in result.items()
    ]
    likelier = {f"{shots}, {row}": of_row for shots, one in result.items() for row, of_row in one["likelier"].items()}
    return [
        "## Names from examples in the context",
        _table(["examples", "N", "name that the model writes ↑", "blind", "chance"], written),
        "The right one of the two names that the document lists:",
        _choices("examples", likelier),
    ]


def _switching(result: Result) -> list[str]:
    titles = {
        "captions": "captions, then a picture",
        "stories": "stories, then a picture, then text",
        "to_picture": "both",
        "to_text": "pictures, then text",
    }
    truths = ("opens", "closes", "returns", "everything")
    rows = [
        [title, f"{result[row]['opens']['num']:,}", *(_share(result[row][truth]) for truth in truths)]
        for row, title in titles.items()
    ]
    heads = ["prompts", "N", "opens the right span ↑", "closes it in time ↑", "returns ↑", "all of it ↑"]
    given = "This kind of model puts the end of a picture by its length: it closes in time whenever it opens."
    notes = [given] if result["closes_by_construction"] else []
    return ["## Switching by itself", _table(heads, rows), *notes]


_SECTIONS: dict[str, Callable[[Result], list[str]]] = {
    "text": _text,
    "image_to_text": _image_to_text,
    "text_to_image": _text_to_image,
    "captions": _captions,
    "questions": _questions,
    "few_shot": _few_shot,
    "switching": _switching,
}
"""Measure -> its paragraphs, in the order of the page."""


def _accuracies(scores: Result) -> list[str]:
    """Of model, blind and majority."""
    return [_share(scores[row]) if row in scores else _NO_VALUE for row in ("model", "blind", "majority")]


def _choices(head: str, rows: Mapping[str, Result]) -> str:
    cells = [
        [
            title,
            f"{one['num']:,}",
            _share(one["share"]),
            f"{one['chance']:.1%}",
            f"{one['nats']:.4f} ± {one['nats_standard_error']:.4f}",
            f"{one['chance_nats']:.4f}",
        ]
        for title, one in rows.items()
    ]
    return _table([head, "N", "likeliest ↑", "chance", "nats ↓", "a guess"], cells)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(share: Result | float) -> str:
    """With its interval if it has one; chance has none."""
    if isinstance(share, Mapping):
        return f"{share['estimate']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"
    return f"{share:.1%}"


def _number(value: float | None, spec: str) -> str:
    return _NO_VALUE if value is None or not math.isfinite(value) else format(value, spec)


def _settings(changes: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "the model's own setting"
