"""Recipes and configs: what is read, what is refused, and in which words."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from latentlm.config import ConfigError, dump_recipe, from_mapping, load_recipe, recipe_class, recipe_help, to_mapping


@dataclass(frozen=True, kw_only=True)
class Head:
    latent_dim: int
    """Channels of one latent."""
    depth: int = 3

    def __post_init__(self):
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, but is {self.latent_dim}")


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    hidden_size: int = 16
    modalities: dict[str, Head] = field(default_factory=dict)
    towers: tuple[Head, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    kind: str = "toy"
    name: str | None = None
    flip: bool = False
    sizes: list[int] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    model: Model = Model()
    optim: Optim = Optim(lr=5e-4, weight_decay=0.1)
    second_optim: Optim | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    inner: Recipe = Recipe(optim=Optim(lr=7.0, schedule="constant"))


KINDS = {"toy": Recipe}


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides, KINDS)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message, "a refusal is one line"
    return message


def test_numbers_without_a_decimal_point_are_numbers(tmp_path):
    recipe = load(tmp_path, "kind: toy\noptim: {lr: 1e-4, betas: [0, 5e-1]}")
    assert recipe.optim.lr == 1e-4
    assert recipe.optim.betas == (0.0, 0.5)


def test_a_partial_section_keeps_the_other_defaults_of_its_field(tmp_path):
    recipe = load(tmp_path, "kind: toy\noptim: {schedule: constant}")
    assert recipe.optim == Optim(lr=5e-4, weight_decay=0.1, schedule="constant")


def test_defaults_are_inherited_through_several_levels():
    stage = from_mapping(Stage, {"inner": {"optim": {"weight_decay": 1}}})
    assert stage.inner.optim == Optim(lr=7.0, schedule="constant", weight_decay=1.0)


def test_every_field_can_be_set_from_the_command_line(tmp_path):
    text = "kind: toy\nmodel: {modalities: {image: {latent_dim: 4}, speech: {latent_dim: 2}}}"
    flags = [
        "--optim.lr",
        "2e-4",
        "--model.modalities.image.latent_dim=8",
        "--name",
        "3",
        "--flip",
        "--sizes",
        "[1, 2]",
    ]
    recipe = load(
        tmp_path, text, *flags, "--columns.image", "img", "--second_optim.lr", "1", "--optim.weight_decay=null"
    )
    assert recipe.optim == Optim(lr=2e-4, weight_decay=None)
    assert recipe.model.modalities == {"image": Head(latent_dim=8), "speech": Head(latent_dim=2)}
    assert (recipe.name, recipe.flip, recipe.sizes, recipe.columns) == ("3", True, [1, 2], {"image": "img"})
    assert recipe.second_optim == Optim(lr=1.0)


def test_a_whole_section_can_be_given_as_one_flag(tmp_path):
    recipe = load(tmp_path, "kind: toy", "--second_optim", "{lr: 3}", "--model.towers", "[{latent_dim: 2}]")
    assert recipe.second_optim == Optim(lr=3.0)
    assert recipe.model.towers == (Head(latent_dim=2),)


def test_a_negative_number_is_a_value_and_not_a_flag(tmp_path):
    assert load(tmp_path, "kind: toy", "--optim.lr", "-1").optim.lr == -1.0


def test_the_last_of_two_equal_flags_wins(tmp_path):
    assert load(tmp_path, "kind: toy", "--name=a", "--name=b").name == "b"


@pytest.mark.parametrize(
    ("text", "misspelt", "nearest"),
    [
        ("optim: {learning: 1}", "optim.learning", "are lr, betas, schedule, weight_decay"),
        ("optim: {betaz: 1}", "optim.betaz", "mean optim.betas?"),
        ("optmi: {lr: 1}", "optmi", "mean optim?"),
        ("lr: 1", "lr", "mean optim.lr?"),
        ("model: {modalities: {image: {latent_dimm: 4}}}", "model.modalities.image.latent_dimm", "image.latent_dim?"),
        ("second_optim: {wait_decay: 4}", "second_optim.wait_decay", "mean second_optim.weight_decay?"),
    ],
)
def test_a_misspelt_field_in_a_file_is_refused_with_the_nearest_right_name(tmp_path, text, misspelt, nearest):
    message = refusal(tmp_path, f"kind: toy\n{text}")
    assert f"recipe.yaml: {misspelt} is not a field" in message
    assert nearest in message


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--optim.lrr", "--optim.lr?"),
        ("--weight_decay", "--optim.weight_decay?"),
        ("--model.modalities.image.deph", "--model.modalities.image.depth?"),
        ("--model.hiden_size", "--model.hidden_size?"),
        ("--name.first", "name is a single value"),
    ],
)
def test_a_misspelt_flag_is_refused_with_the_nearest_right_name(tmp_path, flag, nearest):
    assert nearest in refusal(tmp_path, "kind: toy", flag, "1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: {lr: fast}", "optim.lr takes float, but got 'fast'"),
        ("optim: {lr: null}", "optim.lr takes float, but got null"),
        ("optim: {schedule: cosin}", "optim.schedule takes one of 'cosine', 'constant', but got 'cosin'"),
        ("optim: {betas: [0.9]}", "optim.betas takes tuple[float, float], but got [0.9]"),
        ("optim: 3", "optim takes a mapping of Optim's fields, but got 3"),
        ("optim: other.yaml", "optim takes a mapping of Optim's fields, but got 'other.yaml'"),
        ("model: {hidden_size: 3.5}", "model.hidden_size takes int, but got 3.5"),
        ("model: {hidden_size: true}", "model.hidden_size takes int, but got True"),
        ("model: {modalities: [image]}", "model.modalities takes a mapping, but got ['image']"),
        ("model: {modalities: {image: {depth: 1}}}", "model.modalities.image.latent_dim (int) is required"),
        ("model: {towers: {latent_dim: 1}}", "model.towers takes a list, but got {'latent_dim': 1}"),
        ("name: 3", "name takes str or null, but got 3"),
        ("flip: 1", "flip takes bool, but got 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_full_name(tmp_path, text, expected):
    assert expected in refusal(tmp_path, f"kind: toy\n{text}")


def test_a_flag_of_the_wrong_type_is_refused_as_a_flag(tmp_path):
    assert "--optim.lr takes float, but got 'fast'" in refusal(tmp_path, "kind: toy", "--optim.lr", "fast")
    assert "--optim.lr needs a value (float)" in refusal(tmp_path, "kind: toy", "--optim.lr", "--flip")
    assert "expected a flag" in refusal(tmp_path, "kind: toy", "optim.lr", "1")


def test_a_check_of_a_nested_config_says_where_it_failed(tmp_path):
    message = refusal(tmp_path, "kind: toy\nmodel: {modalities: {image: {latent_dim: 0}}}")
    assert message.endswith("recipe.yaml: model.modalities.image: latent_dim must be at least 1, but is 0")
    assert "model.towers[0]: latent_dim" in refusal(tmp_path, "kind: toy\nmodel: {towers: [{latent_dim: 0}]}")


def test_an_unknown_kind_is_refused_with_the_nearest_one(tmp_path):
    assert "did you mean 'toy'?" in refusal(tmp_path, "kind: toyy")
    assert "one of: toy" in refusal(tmp_path, "optim: {lr: 1}")
    assert "--kind cannot be given" in refusal(tmp_path, "kind: toy", "--kind", "toy")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: [", "is not plain YAML (line 1"),
        ("kind: toy\noptim: {lr: 1}\noptim: {lr: 2}", "the key 'optim' is given twice"),
        ("kind: toy\nname: !!python/object/apply:os.getcwd []", "is not plain YAML"),
        ("- kind", "is not a recipe"),
        ("", "is not a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_sentence(tmp_path, text, expected):
    assert expected in refusal(tmp_path, text)


def test_a_missing_file_and_a_binary_file_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_recipe(tmp_path / "nowhere.yaml", [], KINDS)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not a text file"):
        load_recipe(tmp_path / "binary.yaml", [], KINDS)


def test_a_recipe_over_a_base_holds_only_the_lines_that_differ(tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "base.yaml").write_text("kind: toy\noptim: {lr: 1, schedule: constant}\nsizes: [1]")
    recipe = load(tmp_path, "base: bases/base.yaml\noptim: {lr: 2}\nsizes: [3]")
    assert recipe == Recipe(optim=Optim(lr=2.0, schedule="constant", weight_decay=0.1), sizes=[3])


def test_a_base_of_a_base_is_refused(tmp_path):
    (tmp_path / "base.yaml").write_text("kind: toy\nbase: other.yaml")
    assert "only one level" in refusal(tmp_path, "base: base.yaml")


def test_a_dumped_recipe_loads_as_an_equal_recipe(tmp_path):
    flags = [
        "--optim.lr",
        "1e-8",
        "--model.modalities.image.latent_dim",
        "8",
        "--name",
        "no: #tricks",
        "--sizes",
        "[1]",
    ]
    recipe = load(tmp_path, "kind: toy\nsecond_optim: {lr: 3}\nmodel: {towers: [{latent_dim: 2}]}", *flags)
    assert load(tmp_path, dump_recipe(recipe)) == recipe


@pytest.mark.parametrize("name", ["null", "3", "1e-4", "true", "", "é"])
def test_a_string_that_looks_like_something_else_survives_the_round_trip(tmp_path, name):
    recipe = Recipe(name=name)
    assert load(tmp_path, dump_recipe(recipe)) == recipe


def test_a_mapping_survives_json(tmp_path):
    recipe = Recipe(model=Model(modalities={"image": Head(latent_dim=4)}, towers=(Head(latent_dim=1),)))
    assert from_mapping(Recipe, json.loads(json.dumps(to_mapping(recipe)))) == recipe


def test_reading_a_mapping_leaves_it_unchanged():
    mapping = {"columns": {"image": "img"}, "sizes": ["3"], "optim": {"betas": ["1e-3", 1]}}
    before = json.dumps(mapping)
    assert from_mapping(Recipe, mapping).sizes == [3]
    assert json.dumps(mapping) == before


def test_help_lists_every_field_with_type_default_and_docstring(tmp_path):
    text = recipe_help(Recipe)
    assert "--optim.lr  (float; default: 0.0005)\n      Peak learning rate." in text, "the default is the recipe's own"
    assert "--model.modalities.<name>.latent_dim  (int; required)\n      Channels of one latent." in text
    assert "--optim.schedule  (one of 'cosine', 'constant'; default: cosine)" in text
    assert "--second_optim.lr  (float; default: 0.001)" in text
    assert "--second_optim  (Optim or null; default: null)" in text
    assert "--model.modalities  (dict[str, Head]; default: {})" in text
    assert "--model.towers  (tuple[Head, ...]; default: [])" in text


def test_the_class_of_a_recipe_is_known_without_reading_its_fields(tmp_path):
    (tmp_path / "recipe.yaml").write_text("kind: toy\nnonsense: 1")
    assert recipe_class(tmp_path / "recipe.yaml", KINDS) is Recipe
