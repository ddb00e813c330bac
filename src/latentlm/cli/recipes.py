"""What the verbs that take a recipe share: finding the file, and reading it with the flags over it."""

from importlib import resources
from pathlib import Path
from typing import Any


def find_recipe(name: str) -> Path:
    """The recipe file of this name: a path, or else one of the recipes that come with the package.

    `recipes/image_digits.yaml` and `image_digits.yaml` both name the packaged one where no such file exists here, so
    that the commands of the documentation work outside a clone too.

    Raises:
        ValueError: If it is neither.
    """
    path = Path(name)
    return path if path.is_file() else packaged_recipe(name.removeprefix("recipes/"))


def packaged_recipe(name: str) -> Path:
    """A recipe that comes with the package: inside an installed wheel, or in `recipes/` of a clone.

    Raises:
        ValueError: If there is none of this name.
    """
    in_wheel, in_clone = Path(str(resources.files("latentlm"))) / "recipes", Path(__file__).parents[3] / "recipes"
    for folder in (in_wheel, in_clone):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"there is no recipe {name}, neither here nor among those that come with latentlm")


def read_recipe(name: str | Path, overrides: list[str]) -> Any:
    """The recipe as a dataclass, with command-line flags written over the file.

    Args:
        name: See `find_recipe`.
        overrides: Flags, as `load_recipe` takes them.

    Raises:
        ConfigError: In a sentence, for whatever is wrong with file or flags.
    """
    path = find_recipe(str(name))  # before the imports, which take two seconds
    from latentlm.catalog import RECIPE_CLASSES
    from latentlm.config import load_recipe

    return load_recipe(path, overrides, RECIPE_CLASSES)


def names_of_recipe(name: str) -> set[str]:
    """The fields at the top of the recipe's kind."""
    from dataclasses import fields

    path = find_recipe(name)
    from latentlm.catalog import RECIPE_CLASSES
    from latentlm.config import recipe_class

    return {field.name for field in fields(recipe_class(path, RECIPE_CLASSES))}


def fields_of_recipe(name: str) -> str:
    """All fields of the recipe's kind with types, defaults and docstrings, as text."""
    path = find_recipe(name)
    from latentlm.catalog import RECIPE_CLASSES
    from latentlm.config import recipe_class, recipe_help

    return recipe_help(recipe_class(path, RECIPE_CLASSES))
