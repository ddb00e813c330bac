"""A trained model with all that it needs to be used, as one folder.

config.json, model.safetensors      the model (`pretrained.py`)
generation_config.json              sampling defaults by modality
tokenizers/<modality>/              a tokenizer each, that of text too
label_names.json                    where classes have names
"""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from latentlm.config import from_mapping, to_mapping
from latentlm.pretrained import HubUpload, Pretrained, link_root, publish_model, read_model_config, resolve_folder
from latentlm.storage import read_json, refuse_escape, write_json
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer
from latentlm.tokenizers.text import load_text_tokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer

TEXT = "text"
"""Name of the text tokenizer among a pipeline's tokenizers, and of its sampling options."""

GENERATION_CONFIG = "generation_config.json"
LABEL_NAMES = "label_names.json"

AnyImageTokenizer = ImageTokenizer | VQImageTokenizer

AnyTokenizer = AnyImageTokenizer | SpeechTokenizer | SpeechCodec

TOKENIZER_CLASSES: dict[str, type[AnyTokenizer]] = {
    ImageTokenizer.kind: ImageTokenizer,
    VQImageTokenizer.kind: VQImageTokenizer,
    SpeechTokenizer.kind: SpeechTokenizer,
    SpeechCodec.kind: SpeechCodec,
}
"""What a folder of a tokenizer may hold, by the `kind` of its config.json."""


# Not typing.Self: see `pretrained.py`.
StoredT = TypeVar("StoredT", bound="StoredPipeline")


class StoredPipeline(HubUpload):
    """A model with its tokenizers and sampling defaults.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: By name.
        sampling: Defaults by name; absent ones are those of their classes.

    Raises:
        ValueError: If a tokenizer is missing.

    Attributes:
        model_class: What the folder holds.
        sampling_classes: The options of each modality.
        tokenizer_classes: What its tokenizers may be, by kind.
        tokenizer_names: Of those that the folder must hold.
    """

    model_class: ClassVar[type[Pretrained]]
    sampling_classes: ClassVar[Mapping[str, type]]
    tokenizer_classes: ClassVar[Mapping[str, type[Pretrained]]] = TOKENIZER_CLASSES
    tokenizer_names: ClassVar[tuple[str, ...]]

    def __init__(self, model: Any, tokenizers: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> None:
        if missing := [name for name in self.tokenizer_names if name not in tokenizers]:
            raise ValueError(
                f"a '{self.kind}' needs the tokenizers {', '.join(self.tokenizer_names)}; give {missing[0]}"
            )
        self.model = model.eval()
        self.tokenizers = dict(tokenizers)
        defaults = {name: options_class() for name, options_class in self.sampling_classes.items()}
        self.sampling: dict[str, Any] = defaults | dict(sampling or {})

    @classmethod
    def from_pretrained(
        cls: type[StoredT],
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> StoredT:
        """Load a folder, or a repository of the hub.

        Args:
            source: Local folder or hub id.
            revision: Commit, branch or tag of a hub repository.
            local_files_only: Never touch the network.
            device: Where to put the weights.

        Raises:
            ValueError: If the folder is damaged, holds something else, or its parts do not belong together.
        """
        folder = resolve_folder(source, revision=revision, local_files_only=local_files_only)
        # The model first: a folder of another one is refused by its name and not by its parts.
        model = cls.model_class.from_folder(folder, device=device)
        tokenizers = {
            name: read_tokenizer(folder, name, device=device, classes=cls.tokenizer_classes)
            for name in cls.tokenizer_names
        }
        return cls(model, tokenizers, read_sampling(folder, cls.sampling_classes))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `from_pretrained` needs; see `write_pipeline`."""
        write_pipeline(Path(folder), self.model, self.tokenizers, self.sampling)


def write_pipeline(
    folder: Path,
    model: Any,
    tokenizers: Mapping[str, Any],
    sampling: Mapping[str, Any],
    *,
    label_names: SequenceOf[str] = (),
) -> None:
    """Write a pipeline folder; it appears whole or not at all.

    Args:
        folder: Replaced if it holds a model.
        model: Writes config.json and its weights.
        tokenizers: By name.
        sampling: Default options, by name.
        label_names: Of the classes; may be empty.

    Raises:
        StorageError: If the folder exists and is not a model folder, or the disk refuses.
    """

    def write(staging: Path) -> None:
        model.write_files(staging)
        for name, tokenizer in tokenizers.items():
            (staging / "tokenizers" / name).mkdir(parents=True)
            tokenizer.write_files(staging / "tokenizers" / name)
        write_json(staging / GENERATION_CONFIG, {name: to_mapping(config) for name, config in sampling.items()})
        if label_names:
            write_json(staging / LABEL_NAMES, list(label_names))

    publish_model(folder, write)


def load_image_tokenizer(source: str | Path, *, device: str | torch.device = "cpu") -> AnyImageTokenizer:
    """An image tokenizer from its folder, whichever kind it is.

    Raises:
        ValueError: If the folder is damaged or holds something else.
    """
    return as_image_tokenizer(_tokenizer_of_folder(resolve_folder(source), device, TOKENIZER_CLASSES), source)


def as_image_tokenizer(tokenizer: AnyTokenizer, source: str | Path) -> AnyImageTokenizer:
    """The tokenizer, if it is one of pictures.

    Raises:
        ValueError: If it is another one.
    """
    if not isinstance(tokenizer, AnyImageTokenizer):
        raise ValueError(f"{source} holds a '{tokenizer.kind}', which is no tokenizer of pictures")
    return tokenizer


def read_tokenizer(
    root: Path, name: str, *, device: str | torch.device, classes: Mapping[str, type[Pretrained]] = TOKENIZER_CLASSES
) -> Any:
    """The tokenizer `name` of a pipeline folder `root` that `resolve_folder` has looked at.

    Args:
        root: The folder.
        name: "text" for that of text, or a modality.
        device: Where to put its weights.
        classes: What it may be, by kind; that of text is one of its own.

    Raises:
        ValueError: If it is missing, damaged, or no tokenizer.
    """
    if name == TEXT:
        return load_text_tokenizer(_part(root, name))
    # Absolute, lest a relative name be taken for a hub id.
    return _tokenizer_of_folder(resolve_folder(_part(root, name).absolute()), device, classes)


def _part(root: Path, name: str) -> Path:
    folder = root / "tokenizers" / name
    if not folder.is_dir():
        raise ValueError(f"{root} holds a model without its tokenizer: there is no {folder.relative_to(root)}")
    refuse_escape(folder, root)
    return folder


def _tokenizer_of_folder(folder: Path, device: str | torch.device, classes: Mapping[str, type[Pretrained]]) -> Any:
    kind = read_model_config(folder)["kind"]
    if kind not in classes:
        raise ValueError(f"{folder} holds a '{kind}', which is none of the tokenizers: {', '.join(classes)}")
    return classes[kind].from_folder(folder, device=device)


def read_sampling(folder: Path, classes: Mapping[str, type]) -> dict[str, Any]:
    """Sampling defaults of a pipeline folder, by modality.

    Args:
        folder: The folder.
        classes: The dataclass of each modality's options.

    Raises:
        ValueError: If they are not such options.
    """
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return {}
    refuse_escape(path, link_root(folder))
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise ValueError(f"{path} must map modalities to their sampling defaults")
    if unknown := sorted(content.keys() - classes.keys()):
        raise ValueError(f"{path}: sampling names {', '.join(unknown)} but the model knows {', '.join(classes)}")
    return {name: from_mapping(classes[name], values, where=f"{path}: {name}") for name, values in content.items()}


def read_label_names(folder: Path) -> list[str]:
    """Class names of a pipeline folder; empty if it has none.

    Raises:
        ValueError: If the file is no list of names.
    """
    path = folder / LABEL_NAMES
    if not path.exists():
        return []
    refuse_escape(path, link_root(folder))
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} must be a list of class names")
    return content
