"""A stand-in for torch-fidelity's Inception network, of the same interface."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

LIBRARY = "torch_fidelity"


class StandIn:
    """Takes uint8 RGB as torch-fidelity's extractor does, and returns one tensor per requested layer."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        assert features_list == ["2048", "logits_unbiased"]
        assert feature_extractor_weights_path is not None, "the library would download weights"
        self.weights = feature_extractor_weights_path

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        flat = images.flatten(1).float() / 255
        return flat[:, :5], flat[:, :7] * 9


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what imports torch-fidelity find the stand-in."""
    module = ModuleType(f"{LIBRARY}.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, LIBRARY, ModuleType(LIBRARY))
    monkeypatch.setitem(sys.modules, module.__name__, module)
