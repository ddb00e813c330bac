"""Fingerprints: a model knows the tokenizer it was trained with by a hash over config and weights."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentlm.config import to_mapping
from latentlm.pretrained import Pretrained


class Fingerprinted(Pretrained, nn.Module):
    """A saved module that can be identified.

    Args:
        config: The one that it is built from.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self._fingerprint: tuple[Any, str] | None = None

    def fingerprint(self) -> str:
        """SHA-256 over config, weights and buffers; recomputed only after one of the tensors changed."""
        tensors = self.state_dict()
        if any(tensor.is_inference() for tensor in tensors.values()):  # these do not tell whether they changed
            return fingerprint_of(to_mapping(self.config), tensors)
        state = [(name, tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()]
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, fingerprint_of(to_mapping(self.config), tensors)
        return self._fingerprint[1]


def refuse_other_tokenizer(tokenizer: Any, expected: str | None, *, name: str) -> None:
    """Refuse a tokenizer that a model was not trained with.

    Args:
        tokenizer: Has a `fingerprint()`.
        expected: The fingerprint that the model's config holds; None for a model that takes any.
        name: Of the tokenizer among the model's: `image`, `speech`.

    Raises:
        ValueError: If it is another one.
    """
    if expected is not None and tokenizer.fingerprint() != expected:
        raise ValueError(
            f"this model was trained with another {name} tokenizer (fingerprint {expected[:12]}…, got "
            f"{tokenizer.fingerprint()[:12]}…); use the one in the model's own tokenizers/{name} folder"
        )


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as hex, over a config and named tensors: types, shapes and bytes, in the order of their names.

    The same on every device; another precision is another fingerprint.

    Args:
        config: JSON-able.
        tensors: A state dict.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
