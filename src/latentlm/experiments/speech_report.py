"""Results of the speech protocols as tables for people: numbers beside their N, interval and the judges' own errors."""

from collections.abc import Mapping, Sequence
from typing import Any

from latentlm.experiments.speech_tokenizers import MEASURES

Result = Mapping[str, Any]

_NO_VALUE = "–"
_TITLES = {name: title for title, name in MEASURES.items()}
_ROWS = {"ground_truth": "real recordings", "reconstruction": "those through the tokenizer"}


def tokenizer_report(result: Result) -> str:
    """Of `speech_tokenizer`, as Markdown."""
    rows = {**result["rows"], "real recordings": result["real"]}
    groups = {group: len(names) for group, names in result["speakers"].items()}
    first = next(iter(result["as_models_see"].values()))
    names = [name for name in _TITLES if name in first]
    heads = ["from", "speakers", "clips", *(_TITLES[name] for name in names), "words read right ↑"]
    cells = [
        [
            row,
            f"{group} ({groups[group]})" if groups[group] else group,
            f"{scores['num_clips']}",
            *(_measure(scores.get(name), scores["num_clips"]) for name in names),
            _share(scores["words"]),
        ]
        for row, by_group in rows.items()
        for group, scores in by_group.items()
    ]
    rate, limit = result["rate"], first["max_frequency"]
    sections = ["## Reconstructions", _table(heads, cells), _rate(rate), f"Nothing above {limit:g} Hz counts."]
    if result["tokens"] is not None:
        sections += ["## Latents" if "channels" in result["tokens"] else "## Codes", _tokens(result["tokens"])]
    if result["judge"] is not None:
        sections += ["## The judge of words", _judges(result["judge"], "speakers")]
    if result["parameters"] is not None:
        sections.append(
            f"{result['parameters']:,} parameters; {result['seconds_per_second']:.3f} s for a second of sound, there "
            "and back. Means with standard errors, shares with 95% intervals."
        )
    return "\n\n".join(sections) + "\n"


def text_to_speech_report(result: Result) -> str:
    """Of `text_to_speech`, as Markdown."""
    sections = []
    for protocol in ("reference", "continuation"):
        if protocol in result:
            sections += _protocol(protocol, result[protocol], result["voices"])
    tried = [f"{_settings(trial['changes'])}: {_number(trial['word_error_rate'], '.1%')}" for trial in result["trials"]]
    chosen = f"Spoken with {_settings(result['chosen'])}"
    chosen += (
        f", chosen by the word errors of a recogniser that judges nothing, on validation strings ({'; '.join(tried)})."
        if tried
        else "."
    )
    sections += [chosen, "## The judges, on real recordings of these speakers", _judges(result["judges"], "judge")]
    if (voices := result["voices"]) is not None:
        sections.append(
            f"{voices['label']} between real recordings, {voices['seconds']:g} s a side: {voices['same_mean']:.3f} for "
            f"one speaker (N {voices['num_same']}), {voices['other_mean']:.3f} for two (N {voices['num_other']}), "
            f"midpoint {voices['midpoint']:.3f}, equal error rate {voices['equal_error_rate']:.1%}."
        )
    speed = f"{result['parameters']:,} parameters."
    if result["one_by_one"] is not None:
        alone = result["one_by_one"]
        speed += (
            f" One voice alone: {_number(alone['seconds_per_second'], '.2f')} s a second (N {alone['num_trials']})."
        )
    sections.append(
        f"Voices of {', '.join(result['speakers'])}; trained on {', '.join(result['heard'])}. {speed} In brackets 95% "
        "intervals of a bootstrap over trials."
    )
    return "\n\n".join(sections) + "\n"


def _protocol(name: str, result: Result, voices: Result | None) -> list[str]:
    rows = result["rows"]
    judges = [key for key, value in next(iter(rows.values())).items() if "word_error_rate" in value]
    words = [
        [_ROWS.get(row, row), *(cell for judge in judges for cell in _heard(scores[judge]))]
        for row, scores in rows.items()
    ]
    heads = [title for judge in judges for title in (f"{judge} WER ↓", "of its accuracy ↑", "texts right ↑", "last ↓")]
    similar = [] if voices is None else [f"similarity ↑ (midpoint {voices['midpoint']:.3f})"]
    ends = [
        [
            _ROWS.get(row, row),
            *([] if voices is None else [_similarity(scores["similarity"])]),
            _share(scores["ended"]),
            _share(scores["ended_in_time"]),
            _interval(scores["length_ratio"]),
            *_costs(scores.get("costs", {})),
        ]
        for row, scores in rows.items()
    ]
    titles = [*similar, "ended ↑", "ended in time ↑", "length ratio", "steps/s", "evaluations/s", "FLOP/s", "s per s ↓"]
    return [
        f"## Protocol {name}",
        f"{result['num_trials']} trials of seed {result['seed']}; "
        f"speakers: {result['num_speakers']}, {result['origin']}.",
        _table(["", *heads], words),
        _table(["", *titles], ends),
    ]


def _heard(heard: Result) -> list[str]:
    relative = _number(heard["relative_accuracy"], ".1%")
    return [
        f"{heard['word_error_rate']:.1%} [{heard['interval']['low']:.1%}, {heard['interval']['high']:.1%}]",
        relative if heard["judge_is_fit"] else f"{relative} (judge unfit)",
        f"{heard['exact_share']:.1%}",
        f"{heard['last_word_lost_share']:.1%}",
    ]


def _costs(costs: Result) -> list[str]:
    names = {"steps_per_second": ".1f", "evaluations_per_second": ".1f", "flops_per_second": ".2e"}
    return [_number(costs.get(name), spec) for name, spec in {**names, "seconds_per_second": ".2f"}.items()]


def _rate(rate: Result) -> str:
    parts = [f"{rate['frame_rate']:g} frames a second"]
    if rate["floats_per_second"] is None:
        parts.append(f"{rate['codes_per_second']:g} codes a second")
    else:
        parts.append(f"{rate['floats_per_second']:g} floats a second")
    if rate["bits_per_second"] is not None:
        parts.append(f"{rate['bits_per_second']:,.0f} bits a second")
    return f"{', '.join(parts)}; compression ratio {rate['compression_ratio']:g}."


def _tokens(tokens: Result) -> str:
    if "channels" not in tokens:
        rows = [
            [f"{number}", f"{stage['num_used_codes']}", f"{stage['perplexity']:.0f}"]
            for number, stage in enumerate(tokens["stages"])
        ]
        return _table(["codebook", f"used of {tokens['num_codes']}", "perplexity"], rows)
    rows = [
        [f"{number}", f"{one['mean_std']:.3f}", f"{one['sigma']:.3f}", _number(one["ratio"], ".2f")]
        for number, one in enumerate(tokens["channels"])
    ]
    summary = (
        f"{tokens['bottleneck']}, beta {tokens['beta']:g}: std(mu) {tokens['mean_std']:.3f} against sigma "
        f"{tokens['sigma']:.3f}; {tokens['num_dead_channels']} of {len(rows)} channels are dead."
    )
    return _table(["channel", "std(mu)", "sigma", "std(mu) / sigma"], rows) + f"\n\n{summary}"


def _judges(judges: Result, head: str) -> str:
    kinds = list(next(iter(judges.values()))["accuracy"])
    rows = [
        [name, f"{one['num_texts']}", *(f"{one['accuracy'][kind]:.1%}" for kind in kinds)]
        for name, one in judges.items()
    ]
    return _table([head, "N", *(f"{kind} ↑" for kind in kinds)], rows)


def _measure(measure: Result | None, num_clips: int) -> str:
    if measure is None or measure["mean"] is None:
        return _NO_VALUE
    error = "" if measure["standard_error"] is None else f" ± {measure['standard_error']:.3f}"
    count = f" (N {measure['num_scored']})" if measure["num_scored"] < num_clips else ""
    return f"{measure['mean']:.3f}{error}{count}"


def _share(interval: Result | None) -> str:
    if interval is None:
        return _NO_VALUE
    return f"{interval['estimate']:.1%} [{interval['low']:.1%}, {interval['high']:.1%}]"


def _interval(interval: Result) -> str:
    return f"{interval['estimate']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _similarity(scores: Result) -> str:
    if scores["estimate"] is None:
        return "too little was said"
    return f"{_interval(scores)} (N {scores['num']})"


def _settings(changes: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "the model's own settings"


def _number(value: float | None, spec: str) -> str:
    return _NO_VALUE if value is None else format(value, spec)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
