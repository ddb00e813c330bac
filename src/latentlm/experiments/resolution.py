"""A run's recipe, what decides the run, and where it lives.

    OUT/runs/<run>-<hash>/               the trainer's run folder
    OUT/runs/<run>-<hash>.json           once it is trained: definition, content, seconds; machine and code of the
                                         process that finished it
    OUT/runs/<run>-<hash>.seconds.json   time so far
    OUT/runs/<run>-<hash>.lock           held by the process that trains it

The hash is of what the resolved recipe changes from its defaults, and of the same of all used runs, so that
experiments share equal runs, whatever each calls them, and a run whose recipe changed is another run. A field that a
later version adds leaves the hash as it was. A default that a later version changes does so too, but must not pass:
hence the content, defaults included, is stored with a trained run and compared in every field that both versions have.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm.config import changes_from_defaults, to_mapping
from latentlm.experiments.expansion import Run
from latentlm.experiments.results import definition_hash, differences, listed
from latentlm.experiments.stopwatch import read_seconds
from latentlm.storage import read_json
from latentlm.training.trainer import MAY_CHANGE_ON_RESUME

NUM_HASH_LETTERS = 8
"""Of a hash that stands in a folder's name."""


@dataclass(frozen=True)
class ResolvedRun:
    """A run with its recipe read.

    Attributes:
        recipe: The recipe, fields of used models filled with folders.
        content: `recipe`: all of the recipe that decides what the run computes, defaults included, as plain values;
            `used_recipes`: field of the recipe to the content of the run that fills it.
        definition: The same without what is at its default.
        folder: Its run folder.
    """

    recipe: Any
    content: Mapping[str, Any]
    definition: Mapping[str, Any]
    folder: Path

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to do.

        Raises:
            ValueError: If it was trained, but with another value of a field that both recipes have.
        """
        note = self.beside(".json")
        if not (note.exists() and (self.folder / "model").exists()):
            return False
        if changes := differences(read_json(note).get("content", {}), self.content, shared_only=True):
            raise ValueError(
                f"{self.folder} was trained with other values ({listed(changes)}), for a default has changed since. "
                f"Move that folder and {note.name} beside it away to train it again, or choose another --out"
            )
        return True

    def beside(self, suffix: str) -> Path:
        """A file of the runner's own, beside the trainer's folder."""
        return self.folder.with_name(self.folder.name + suffix)

    @property
    def seconds(self) -> float:
        """Time spent on training so far."""
        return read_seconds(self.beside(".seconds.json"))


class Resolver:
    """Reads the recipes of runs, each once.

    Args:
        runs: By key.
        read_recipe: Name of a recipe file and flags to a recipe, a dataclass with a `kind`.
        parent: Holds the run folders.
    """

    def __init__(self, runs: Mapping[str, Run], read_recipe: Callable[[str, list[str]], Any], parent: Path) -> None:
        self._runs = runs
        self._read_recipe = read_recipe
        self._parent = parent
        self._resolved: dict[str, ResolvedRun] = {}

    def resolve(self, run: Run) -> ResolvedRun:
        """Read a run's recipe and find its folder.

        Raises:
            ConfigError: If the recipe refuses a field of `set` or `uses`.
        """
        if run.key not in self._resolved:
            used = {target: self.resolve(self._runs[key]) for target, key in run.uses.items()}
            models = {target: str(model.folder / "model") for target, model in used.items()}
            flags = [f"--{name}={_flag_text(value)}" for name, value in {**run.overrides, **models}.items()]
            recipe = self._read_recipe(run.recipe, flags)
            changes = {"kind": recipe.kind, **changes_from_defaults(recipe)}
            everything = {"kind": recipe.kind, **to_mapping(recipe)}
            for name in (*models, *MAY_CHANGE_ON_RESUME):
                _remove(changes, name)  # folders and habits of logging decide nothing
                _remove(everything, name)
            content = {
                "recipe": everything,
                "used_recipes": {target: dict(model.content) for target, model in used.items()},
            }
            definition = {"recipe": changes, "uses": {target: dict(model.definition) for target, model in used.items()}}
            self._resolved[run.key] = ResolvedRun(recipe, content, definition, self._folder(run.key, definition))
        return self._resolved[run.key]

    def _folder(self, name: str, definition: Mapping[str, Any]) -> Path:
        """The folder in which an equal run was begun, under whichever name; else one of this name."""
        letters = definition_hash(definition)[:NUM_HASH_LETTERS]
        begun = sorted(path for path in self._parent.glob(f"*-{letters}") if path.is_dir())
        return begun[0] if begun else self._parent / f"{name}-{letters}"


def as_written(run: Run, runs: Mapping[str, Run]) -> dict[str, Any]:
    """A run as the experiment file has it, after expansion, and the runs it uses: what can be compared without recipes.

    Args:
        run: To describe.
        runs: By key.
    """
    return {
        "recipe": run.recipe,
        "set": {name: value for name, value in run.overrides.items() if name not in MAY_CHANGE_ON_RESUME},
        "uses": {target: as_written(runs[key], runs) for target, key in run.uses.items()},
    }


def _flag_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _remove(content: dict[str, Any], name: str) -> None:
    """Remove the field of this full name if it is there, and a nested mapping that holds nothing then."""
    first, _, rest = name.partition(".")
    if not rest:
        content.pop(first, None)
    elif isinstance(nested := content.get(first), dict):
        _remove(nested, rest)
        if not nested:
            del content[first]
