"""Training a part of a LatentLM: LoRA on its backbone (Hu et al. 2021), or frozen parameters by name.

    backbone weight W, frozen ──▶ W + (alpha / rank) B A     A, B trained by `add_lora`, folded into W by `merge_lora`
    rows of text ids, frozen; rows of new ids, input projections, diffusion heads: trained

The backbone of a pretrained language model keeps its text ability better when few numbers of it move, while whatever
the checkpoint did not bring has to be learned in full. An adapted model is for training: its parameters have other
names than a LatentLM's, so that `merge_lora` comes before saving it as a model.
"""

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latentlm.models.latentlm import LatentLM

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of the backbone."""

_ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank changes to the backbone's linear layers."""

    rank: int = 16
    """Width of A and B."""
    alpha: int = 32
    """The change is scaled by alpha / rank, so that one learning rate suits several ranks."""
    dropout: float = 0.0
    """Share of a layer's inputs that A does not see in training."""
    target_modules: tuple[str, ...] = LORA_TARGETS
    """Names of the linear layers that are changed, in every layer of the backbone."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank {self.rank} must be at least 1 and alpha {self.alpha} positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in [0, 1)")
        if unknown := sorted(set(self.target_modules) - set(LORA_TARGETS)):
            raise ValueError(f"target_modules has {', '.join(unknown)}; known are {', '.join(LORA_TARGETS)}")
        if not self.target_modules:
            raise ValueError("target_modules is empty; to train no weight of the backbone, freeze 'transformer.*'")


class NewRows(nn.Module):
    """A table whose first rows stay and whose last rows are trained: a parametrization of its weight.

    Hiding gradients from the first rows would not do: an optimizer's weight decay moves what has no gradient.

    Args:
        table: The whole table.
        num_frozen: Rows that stay.
    """

    def __init__(self, table: Float[Tensor, "V D"], num_frozen: int) -> None:
        super().__init__()
        self.num_frozen = num_frozen
        # "token" in its name keeps weight decay away from it (`training.optim.is_decayed`).
        self.token_rows = nn.Parameter(table.detach()[num_frozen:].clone())

    def forward(self, table: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
        """The table with its last rows replaced. It is a copy, the price of a frozen part."""
        return torch.cat([table[: self.num_frozen], self.token_rows])


def add_lora(model: LatentLM, config: LoraConfig) -> None:
    """Freeze a model's backbone and text rows, and give the backbone trainable low-rank changes, all in place.

    B starts at zero, so the outputs are as before. A is drawn from PyTorch's global generator, as new layers are.

    Args:
        model: The model to train.
        config: Rank, scale, and which layers.

    Raises:
        ImportError: If the library peft is missing.
        ValueError: If the model has been adapted already.
    """
    peft = _import_peft()
    if _is_adapted(model):
        raise ValueError("the model has LoRA layers already; merge_lora folds them into its weights")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        bias="none",
    )
    # Into the backbone alone: layers of the diffusion heads have the same names. This freezes its other weights.
    peft.inject_adapter_in_model(settings, model.transformer, adapter_name=_ADAPTER)
    model.train(model.training)  # its new layers are in training mode, whatever the model's is
    if num_text_ids := model.config.vocabulary.num_text_ids:
        for module in (model.embed_tokens, model.lm_head):
            if module is not None:
                module.weight.requires_grad_(False)
                parametrize.register_parametrization(module, "weight", NewRows(module.weight, num_text_ids))


@torch.no_grad()
def merge_lora(model: LatentLM) -> LatentLM:
    """A plain model with the changes folded into its weights; the adapted one stays as it is and can train on.

    Names and number of its parameters are those of any LatentLM, all of them trainable; mode and device are kept.

    Raises:
        ImportError: If the library peft is missing.
        ValueError: If the model has no LoRA layers.
    """
    _import_peft()
    from peft.tuners.lora import Linear as LoraLinear

    if not _is_adapted(model):
        raise ValueError("the model has no LoRA layers to merge")
    with torch.device("meta"):
        plain = LatentLM(model.config)
    weights: dict[str, Tensor] = {}
    for name in plain.state_dict():
        path, _, own_name = name.rpartition(".")
        owner = model.get_submodule(path)
        if isinstance(owner, LoraLinear):
            weight = getattr(owner.get_base_layer(), own_name)
            change = owner.get_delta_weight(_ADAPTER) if own_name == "weight" else 0.0
            weights[name] = (weight + change).to(weight.dtype)
        else:
            weights[name] = getattr(owner, own_name).detach().clone()  # of a table, the text rows and the new ones
    plain.load_state_dict(weights, assign=True)
    return plain.train(model.training).requires_grad_(True)


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop training the parameters whose full names fit a pattern.

    Args:
        model: Any module.
        patterns: As of the shell: "transformer.*" is the backbone, "*.bias" all biases. `*` crosses dots.

    Returns:
        Names of the frozen parameters.

    Raises:
        ValueError: If a pattern fits nothing, naming parameters that come close; nothing is frozen then.
    """
    parameters = dict(model.named_parameters())
    frozen: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            near = difflib.get_close_matches(pattern, parameters, n=3, cutoff=0.0)
            raise ValueError(f"no parameter fits {pattern!r}; the nearest names are {', '.join(near)}")
        frozen |= {name: parameters[name] for name in names}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return list(frozen)


def _is_adapted(model: LatentLM) -> bool:
    # Where peft notes what it did to a module.
    return hasattr(model.transformer, "peft_config")


def _import_peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs the library peft: pip install 'latentlm[hf]'") from error
    return peft
