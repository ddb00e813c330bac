"""Raw in, raw out: a model together with the tokenizers it was trained with.

A pipeline folder is a model folder (config.json, model.safetensors) that also holds `generation_config.json`, a folder
`tokenizers/<modality>/` per tokenizer and, where classes have names, `label_names.json`.
"""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.config import from_mapping, to_mapping
from latentlm.generation.generator import Generator
from latentlm.generation.requests import GenerationRequest, LatentSamplingConfig, LatentSpan
from latentlm.models.latentlm import LatentLM
from latentlm.pretrained import HubUpload, link_root, publish_model, read_model_config, resolve_folder
from latentlm.sequence import Document, LabelPart, LatentPart, SequenceBuilder
from latentlm.storage import read_json, refuse_escape, write_json
from latentlm.tokenizers.base import LatentTokenizer
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import ByteTokenizer

GENERATION_CONFIG = "generation_config.json"
LABEL_NAMES = "label_names.json"

TOKENIZER_CLASSES = {ImageTokenizer.kind: ImageTokenizer}
"""What a `tokenizers/<modality>/` folder may hold, by the `kind` of its config.json."""


def check_tokenizers(model: LatentLM, tokenizers: Mapping[str, LatentTokenizer]) -> None:
    """Refuse tokenizers that the model was not trained with.

    Raises:
        ValueError: If one is missing, has another latent_dim or another fingerprint.
    """
    for name, modality in model.config.modalities.items():
        if name not in tokenizers:
            raise ValueError(f"the model draws '{name}' latents but no tokenizer was given to decode them")
        tokenizer = tokenizers[name]
        if tokenizer.latent_dim != modality.latent_dim:
            raise ValueError(
                f"the {name} tokenizer gives latents of {tokenizer.latent_dim} dimensions but the model was built for "
                f"latent_dim={modality.latent_dim}; was it trained with another tokenizer?"
            )
        expected = modality.tokenizer_fingerprint
        if expected is not None and tokenizer.fingerprint() != expected:
            raise ValueError(
                f"this model was trained with another {name} tokenizer (fingerprint {expected[:12]}…, got "
                f"{tokenizer.fingerprint()[:12]}…); use the one in the model's own tokenizers/{name} folder"
            )


class LatentLMPipeline(HubUpload):
    """A trained model that takes labels and gives pictures.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: Latent tokenizers by modality.
        sampling: Defaults of every modality.
        label_names: Name of every class, for people; may be empty.

    Raises:
        ValueError: If model, tokenizers, sampling and label names do not belong together.
    """

    kind = LatentLM.kind

    def __init__(
        self,
        model: LatentLM,
        tokenizers: Mapping[str, LatentTokenizer],
        sampling: Mapping[str, LatentSamplingConfig] | None = None,
        *,
        label_names: SequenceOf[str] = (),
    ) -> None:
        check_tokenizers(model, tokenizers)
        num_classes = model.config.vocabulary.num_classes
        if label_names and len(label_names) != num_classes:
            raise ValueError(f"{len(label_names)} label names were given for a model of {num_classes} classes")
        self.model = model.eval()
        self.tokenizers = dict(tokenizers)
        self.sampling = dict(sampling or {})
        self.label_names = tuple(label_names)
        vocabulary = model.config.vocabulary
        self.builder = SequenceBuilder(
            vocabulary, list(model.config.modalities), ByteTokenizer() if vocabulary.num_text_ids else None
        )
        Generator(self.model, self.builder, self.sampling)  # refuses sampling that does not fit now, not when drawing

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> "LatentLMPipeline":
        """Load a folder, or a repository of the hub.

        Args:
            source: Local folder or hub id.
            revision: Commit, branch or tag of a hub repository.
            local_files_only: Never touch the network.
            device: Where to put the weights.

        Raises:
            ValueError: If the folder is damaged, holds no pipeline, or its parts do not belong together.
        """
        folder = resolve_folder(source, revision=revision, local_files_only=local_files_only)
        model = LatentLM.from_folder(folder, device=device)
        tokenizers = {
            name: _read_tokenizer(folder / "tokenizers" / name, root=folder, device=device)
            for name in model.config.modalities
        }
        return cls(model, tokenizers, _read_sampling(folder), label_names=_read_label_names(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `from_pretrained` needs; the folder appears whole or not at all.

        Raises:
            StorageError: If the folder exists and is not a model folder, or the disk refuses.
        """

        def write(staging: Path) -> None:
            self.model.write_files(staging)
            for name, tokenizer in self.tokenizers.items():
                assert isinstance(tokenizer, ImageTokenizer)
                (staging / "tokenizers" / name).mkdir(parents=True)
                tokenizer.write_files(staging / "tokenizers" / name)
            write_json(
                staging / GENERATION_CONFIG, {name: to_mapping(config) for name, config in self.sampling.items()}
            )
            if self.label_names:
                write_json(staging / LABEL_NAMES, list(self.label_names))

        publish_model(Path(folder), write)

    def generate_images(
        self,
        labels: SequenceOf[int | None],
        *,
        seeds: SequenceOf[int] | None = None,
        seed: int = 0,
        sampling: LatentSamplingConfig | None = None,
        batch_size: int = 256,
        height: int | None = None,
        width: int | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """One picture per label, in [-1, 1].

        A picture depends on its own label and seed, not on the batch around it (up to rounding: the order of float
        sums differs between batch sizes).

        Args:
            labels: Classes; None draws without a condition.
            seeds: One per picture; None takes seed, seed + 1, …
            seed: First of the default seeds.
            sampling: Solver, steps and guidance; None takes the model's defaults.
            batch_size: Pictures drawn at a time.
            height: Of the picture in pixels; None is the tokenizer's training size.
            width: Likewise.

        Raises:
            ValueError: If a label does not exist, the seeds are not one per label, or the patch does not divide the
                size.
        """
        tokenizer = self.tokenizers["image"]
        assert isinstance(tokenizer, ImageTokenizer)
        size: int = tokenizer.config.image_size
        height = size if height is None else height
        width = size if width is None else width
        rows, columns = tokenizer.grid(height, width)
        seeds = list(range(seed, seed + len(labels))) if seeds is None else seeds
        if len(seeds) != len(labels):
            raise ValueError(f"{len(seeds)} seeds were given for {len(labels)} labels; give one per picture")
        generator = Generator(
            self.model, self.builder, self.sampling if sampling is None else self.sampling | {"image": sampling}
        )
        requests = [
            GenerationRequest(
                prompt=Document((LabelPart(label),)),
                # What training puts in the place of a dropped label, with and without switch tokens.
                negative_prompt=Document((LabelPart(None),)),
                spans=(LatentSpan("image", rows * columns),),
                seed=one,
            )
            for label, one in zip(labels, seeds, strict=True)
        ]
        pictures = [torch.empty(0, tokenizer.config.num_channels, height, width, device=self.model.device)]
        for start in range(0, len(requests), batch_size):
            documents = generator.generate(requests[start : start + batch_size])
            latents = torch.stack(
                [part.latents for doc in documents for part in doc.parts if isinstance(part, LatentPart)]
            )
            with torch.no_grad():
                pictures.append(tokenizer.decode(latents, grid=(rows, columns)))
        return torch.cat(pictures)


def _read_tokenizer(folder: Path, *, root: Path, device: str | torch.device) -> LatentTokenizer:
    """A tokenizer of a pipeline folder `root` that `resolve_folder` has looked at."""
    if not folder.is_dir():
        raise ValueError(f"{root} holds a model without its tokenizer: there is no {folder.relative_to(root)}")
    refuse_escape(folder, root)
    resolve_folder(folder.absolute())  # absolute, lest a relative name be taken for a hub id
    kind = read_model_config(folder)["kind"]
    if kind not in TOKENIZER_CLASSES:
        raise ValueError(f"{folder} holds a '{kind}', which is none of the tokenizers: {', '.join(TOKENIZER_CLASSES)}")
    return TOKENIZER_CLASSES[kind].from_folder(folder, device=device)


def _read_sampling(folder: Path) -> dict[str, LatentSamplingConfig]:
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return {}
    refuse_escape(path, link_root(folder))
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise ValueError(f"{path} must map modalities to their sampling defaults")
    return {
        name: from_mapping(LatentSamplingConfig, values, where=f"{path}: {name}") for name, values in content.items()
    }


def _read_label_names(folder: Path) -> list[str]:
    path = folder / LABEL_NAMES
    if not path.exists():
        return []
    refuse_escape(path, link_root(folder))
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} must be a list of class names")
    return content
