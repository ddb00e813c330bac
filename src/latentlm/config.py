"""Recipes and configs: YAML, JSON and command-line flags to frozen dataclasses, and back.

    recipe.yaml ──`base:` merged──▶ mapping ──flags written over it──▶ mapping ──`kind:` names the class──▶ dataclass

A config is a frozen dataclass made of numbers, strings, tuples, further dataclasses and `dict[str, dataclass]`. This
file walks the dataclass tree, so that a misspelt field is answered with the full name of the nearest right one and
every error says where it happened; jsonargparse, imported here alone, reads the single values (`1e-4` is a number,
`3.5` is no int, `[0.9, 0.98]` fills a tuple). Recipes hold no import paths: `kind:` is looked up in the table that the
caller passes.
"""

import ast
import copy
import difflib
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

ConfigT = TypeVar("ConfigT")


class ConfigError(ValueError):
    """A recipe, config or flag cannot be accepted; the message is one sentence for the person who wrote it."""


def from_mapping(cls: type[ConfigT], mapping: Mapping[str, Any], *, where: str = "") -> ConfigT:
    """Build a config dataclass from nested plain values, refusing whatever does not fit.

    A nested mapping that names only some fields of a dataclass is completed from the default of the field it fills; an
    entry of a `dict[str, dataclass]` is completed from the dataclass's own defaults.

    Args:
        cls: A dataclass.
        mapping: Field name to value, as YAML or JSON give them.
        where: What is being read, for error messages: a file name, for example.

    Raises:
        ConfigError: On an unknown field (the nearest right name is in the message), a missing one, a value of the
            wrong type, or a ValueError from a `__post_init__`.
    """
    try:
        return _build(cls, mapping, path="", root=cls, default=None)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def to_mapping(instance: Any) -> dict[str, Any]:
    """The plain, JSON-able content of a config dataclass; `from_mapping` inverts it."""
    return {field.name: _plain(getattr(instance, field.name)) for field in fields(instance)}


def changes_from_defaults(instance: Any) -> dict[str, Any]:
    """What of a config dataclass differs from the defaults of its fields, nested, as plain values.

    Names a config by what somebody decided: a field that a later version adds changes nothing as long as its default
    is what was done before.
    """
    changed = [field for field in fields(instance) if getattr(instance, field.name) != _default_of(field)]
    return {field.name: _plain(getattr(instance, field.name), changes_from_defaults) for field in changed}


def with_changes(instance: ConfigT, changes: Mapping[str, Any], *, where: str) -> ConfigT:
    """A config with some of its fields changed, by dotted names.

    Args:
        instance: A config dataclass.
        changes: Such as {"cfg_scale": 2.0, "solver.num_inference_steps": 10}.
        where: What it is, for the error message.

    Raises:
        ConfigError: If there is no such field, or its value is refused.
    """
    mapping = to_mapping(instance)
    for name, value in changes.items():
        *parents, last = name.split(".")
        place: Any = mapping
        for parent in parents:
            place = place.get(parent)
            if not isinstance(place, dict):
                raise ConfigError(f"{where} has no option {name}")
        place[last] = value
    # By way of the mapping, so that a misspelt option is refused like one in a recipe.
    return from_mapping(type(instance), mapping, where=where)


def load_recipe(path: str | Path, overrides: Sequence[str], kinds: Mapping[str, type]) -> Any:
    """Read a YAML recipe with its `base:`, write command-line flags over it, and build the dataclass of its `kind:`.

    Args:
        path: The recipe. Its `base:`, if any, is relative to it and has no base of its own.
        overrides: Flags such as `["--optim.lr", "2e-4"]` or `["--optim.lr=2e-4"]`; a bool flag may stand alone.
        kinds: Kind to recipe dataclass.

    Raises:
        ConfigError: In one sentence, for anything that is wrong with the file or the flags.
    """
    mapping = _read_recipe(Path(path))
    cls = _class_of_kind(mapping, kinds, where=str(path))
    for name, text in _split_flags(overrides):
        _apply_override(cls, mapping, name, text)
    if "kind" not in {field.name for field in fields(cls)}:
        del mapping["kind"]
    return from_mapping(cls, mapping, where=str(path))


def recipe_class(path: str | Path, kinds: Mapping[str, type]) -> type:
    """The dataclass that a recipe file's `kind:` names, for help about its fields.

    Raises:
        ConfigError: If the file cannot be read or its kind is not in `kinds`.
    """
    return _class_of_kind(_read_recipe(Path(path)), kinds, where=str(path))


def dump_recipe(recipe: Any) -> str:
    """The whole resolved recipe as YAML, every default spelled out; `load_recipe` reads back an equal recipe."""
    mapping = {"kind": recipe.kind, **to_mapping(recipe)}
    # None: innermost sections on one line, as recipes are written by hand.
    return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def recipe_help(cls: type) -> str:
    """Every field of a recipe dataclass by its full name, with type, default and docstring, as text."""
    blocks = []
    for entry in _walk_fields(cls):
        default = "required" if entry.default is MISSING else f"default: {_yaml_line(entry.default)}"
        lines = [f"  --{entry.name}  ({describe_type(entry.hint)}; {default})"]
        lines += textwrap.wrap(entry.doc, width=110, initial_indent=" " * 6, subsequent_indent=" " * 6)
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def describe_type(hint: Any) -> str:
    """A type hint in a reader's words: `float or null`, `one of 'cosine', 'constant'`."""
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(hint))
    members = _union_members(hint)
    if len(members) > 1:
        return " or ".join(describe_type(member) for member in members)
    if arguments := typing.get_args(hint):
        inner = ", ".join("..." if argument is Ellipsis else describe_type(argument) for argument in arguments)
        return f"{typing.get_origin(hint).__name__}[{inner}]"
    return getattr(hint, "__name__", str(hint))


# Building: nested plain values to dataclasses


def _build(cls: type, mapping: Any, *, path: str, root: type, default: Any) -> Any:
    """Build `cls` from `mapping`; fields not named come from `default` (an instance) or the class's own defaults."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path or 'the whole'} takes a mapping of {cls.__name__}'s fields, but got {mapping!r}")
    hints = typing.get_type_hints(cls)
    own = {field.name: field for field in fields(cls) if field.init}
    for key in mapping:
        if key not in own:
            raise ConfigError(_unknown_field(root, path, str(key), siblings=list(own)))
    values = {} if default is None else {name: getattr(default, name) for name in own}
    for name, field in own.items():
        full_name = _join(path, name)
        if name in mapping:
            inherited = _default_of(field) if default is None else getattr(default, name)
            values[name] = _convert(hints[name], mapping[name], path=full_name, root=root, default=inherited)
        elif name not in values and _default_of(field) is MISSING:
            raise ConfigError(f"{full_name} ({describe_type(hints[name])}) is required and has no default")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _convert(hint: Any, value: Any, *, path: str, root: type, default: Any = None) -> Any:
    """One field's value: dataclasses, and containers of dataclasses, by recursion; anything else is a leaf."""
    if value is None or not _holds_dataclass(hint):
        return _parse_leaf(hint, value, name=path)
    nested = _nested_dataclass(hint)
    if nested is not None:
        return _build(nested, value, path=path, root=root, default=default if isinstance(default, nested) else None)
    container = next(member for member in _union_members(hint) if _holds_dataclass(member))
    item_hints = typing.get_args(container)
    if typing.get_origin(container) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} takes a mapping, but got {value!r}")
        return {key: _convert(item_hints[1], item, path=_join(path, key), root=root) for key, item in value.items()}
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(f"{path} takes a list, but got {value!r}")
    items = [_convert(item_hints[0], item, path=f"{path}[{i}]", root=root) for i, item in enumerate(value)]
    return tuple(items) if typing.get_origin(container) is tuple else items


def _parse_leaf(hint: Any, value: Any, *, name: str) -> Any:
    """A value without dataclasses, checked and converted to its type by jsonargparse."""
    members = _union_members(hint)
    if isinstance(value, str) and str in members:
        return value  # As written: jsonargparse would turn the string "null" or "3" of a wider union into None or 3.
    # jsonargparse takes None for "not given" and lets it pass under any type.
    accepted = value is not None or type(None) in members or Any in members
    try:
        # A copy, because jsonargparse converts the items of a dict or list in place.
        parsed = _leaf_parser(hint).parse_object({"value": copy.deepcopy(value)}).value
    except ArgumentError as error:
        raise ConfigError(f"{name} takes {describe_type(hint)}, but got {value!r}") from error
    if not accepted:
        raise ConfigError(f"{name} takes {describe_type(hint)}, but got null")
    return parsed


@functools.cache
def _leaf_parser(hint: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_argument("--value", type=hint)
    return parser


def _plain(value: Any, of_dataclass: Callable[[Any], dict[str, Any]] = to_mapping) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return of_dataclass(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, of_dataclass) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, of_dataclass) for item in value]
    return str(value) if isinstance(value, Path) else value


# Reading: files and flags to nested plain values


class _RecipeLoader(yaml.SafeLoader):
    """Safe YAML (no tags that build objects) in which a key given twice is an error rather than a silent loss."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{where} is not plain YAML{place}: {getattr(error, 'problem', None) or error}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the recipe {path} is not a text file in UTF-8") from error
    mapping = _read_yaml(text, where=str(path))
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} is not a recipe: its top level is no mapping of field names to values")
    return mapping


def _read_recipe(path: Path) -> dict[str, Any]:
    """The raw mapping of a recipe, its base merged in."""
    mapping = _read_file(path)
    if "base" not in mapping:
        return mapping
    base_name = mapping.pop("base")
    if not isinstance(base_name, str):
        raise ConfigError(f"{path}: base takes the name of a recipe file, but got {base_name!r}")
    base_path = path.parent / base_name
    base = _read_file(base_path)
    if "base" in base:
        raise ConfigError(f"{path}: its base {base_path} has a base itself; only one level is allowed")
    return _merge(base, mapping)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _class_of_kind(mapping: Mapping[str, Any], kinds: Mapping[str, type], *, where: str) -> type:
    known = ", ".join(sorted(kinds))
    if "kind" not in mapping:
        raise ConfigError(f"{where}: a recipe says what it trains with `kind:`, one of: {known}")
    kind = mapping["kind"]
    if kind not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}: the kind {kind!r} is not known (known: {known}){hint}")
    return kinds[kind]


def _split_flags(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flag name and text; the text is None where a flag stands alone."""
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) < 3:
            raise ConfigError(f"expected a flag such as --optim.lr 2e-4, but got {flag!r}")
        name, equals, text = flag[2:].partition("=")
        if equals:
            yield name, text
        elif rest and not rest[0].startswith("--"):
            yield name, rest.pop(0)
        else:
            yield name, None


def _apply_override(cls: type, mapping: dict[str, Any], name: str, text: str | None) -> None:
    """Write one flag into the raw mapping, after checking its name and value against the dataclass."""
    if name == "kind":
        raise ConfigError("--kind cannot be given as a flag: the kind belongs to the recipe file")
    hint = _hint_at(cls, name)
    members = _union_members(hint)
    if text is None:
        if bool not in members:
            raise ConfigError(f"--{name} needs a value ({describe_type(hint)})")
        text = "true"
    if text == "null" and type(None) in members:
        value = None
    elif _holds_dataclass(hint):
        value = _read_yaml(text, where=f"--{name}")
    else:
        value = _parse_leaf(hint, text, name=f"--{name}")
    *parents, last = name.split(".")
    for parent in parents:
        if not isinstance(mapping.get(parent), dict):
            mapping[parent] = {}
        mapping = mapping[parent]
    mapping[last] = value


def _hint_at(cls: type, name: str) -> Any:
    """The type of the field with this full name, e.g. `model.modalities.image.latent_dim`."""
    hint: Any = cls
    parts = name.split(".")
    for depth, part in enumerate(parts):
        parent, nested = ".".join(parts[:depth]), _nested_dataclass(hint)
        mappings = [member for member in _union_members(hint) if typing.get_origin(member) is dict]
        if nested is not None:
            own = [field.name for field in fields(nested) if field.init]
            if part not in own:
                raise ConfigError(_unknown_field(cls, parent, part, siblings=own, prefix="--"))
            hint = typing.get_type_hints(nested)[part]
        elif mappings:
            hint = typing.get_args(mappings[0])[1]
        else:
            raise ConfigError(f"--{name} does not exist: {parent} is a single value ({describe_type(hint)})")
    return hint


# The tree of a config class


@dataclass(frozen=True, kw_only=True)
class _FieldEntry:
    """One leaf of a config class; `default` is MISSING where a value is required."""

    name: str
    hint: Any
    default: Any
    doc: str


def _walk_fields(cls: type, path: str = "", default: Any = None) -> Iterator[_FieldEntry]:
    """All leaves below a config class, in order; entries of a dict of dataclasses are called `<name>`."""
    hints, docs = typing.get_type_hints(cls), _attribute_docs(cls)
    for field in fields(cls):
        hint, name = hints[field.name], _join(path, field.name)
        value = _default_of(field) if default is None else getattr(default, field.name)
        nested = _nested_dataclass(hint)
        item = next((typing.get_args(m)[1] for m in _union_members(hint) if typing.get_origin(m) is dict), None)
        if nested is None or type(None) in _union_members(hint):
            yield _FieldEntry(name=name, hint=hint, default=value, doc=docs.get(field.name, ""))
        if nested is not None:
            yield from _walk_fields(nested, name, value if isinstance(value, nested) else None)
        elif is_dataclass(item):
            yield from _walk_fields(typing.cast(type, item), f"{name}.<name>")


def _attribute_docs(cls: type) -> dict[str, str]:
    """Field name to the string literal that follows the field in the class's source."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        body = typing.cast(ast.ClassDef, definition).body
        for statement, following in zip(body, body[1:], strict=False):
            named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            if named and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = inspect.cleandoc(str(following.value.value))  # pyright: ignore
    return docs


def _unknown_field(root: type, parent: str, name: str, *, siblings: Sequence[str], prefix: str = "") -> str:
    """The sentence that refuses a field name and offers the nearest right one, looked for beside it first."""
    refusal = f"{prefix}{_join(parent, name)} is not a field"
    if near := difflib.get_close_matches(name, siblings, n=1):
        return f"{refusal}; did you mean {prefix}{_join(parent, near[0])}?"
    # Right name, wrong place: compare the last parts of all full names.
    full_names = {entry.name.rpartition(".")[2]: entry.name for entry in reversed(list(_walk_fields(root)))}
    if near := difflib.get_close_matches(name, full_names, n=1):
        return f"{refusal}; did you mean {prefix}{full_names[near[0]]}?"
    return f"{refusal}; the fields {f'of {parent}' if parent else 'here'} are {', '.join(siblings)}"


def _union_members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _nested_dataclass(hint: Any) -> type | None:
    """The dataclass a field holds directly, `X` or `X | None`."""
    return next((member for member in _union_members(hint) if isinstance(member, type) and is_dataclass(member)), None)


def _holds_dataclass(hint: Any) -> bool:
    """Whether dataclasses occur in a type: itself, in a union, or as the items of a dict, list or tuple."""
    return is_dataclass(hint) or any(_holds_dataclass(argument) for argument in typing.get_args(hint))


def _default_of(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _yaml_line(value: Any) -> str:
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()
