"""`torch.compile` for training: the repeated layers alone, which is where the time goes and what compiles once for all.

Layers that stand in one `nn.ModuleList` share their code, so that one compilation serves all of them; what lies around
them (embeddings, losses, the choice of positions) is small and changes shape from batch to batch.
"""

import os
import shutil
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch._functorch import config as functorch_config

from latentlm.training.objective import Objective

_CPU_OPTIONS = {"pattern_matcher": False}
"""Off on a CPU: it replaces attention over a few dozen positions by the fused kernel, whose backward pass is slower
there (see `nn.attention`)."""


def compile_layers(objective: Objective) -> list[nn.Module]:
    """Compile every layer that stands in a list of layers, in place; frozen children stay as they are.

    Args:
        objective: On its device already.

    Returns:
        The layers.

    Raises:
        ValueError: If this is a CPU without a C++ compiler.
    """
    on_cpu = objective.device.type == "cpu"
    if on_cpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise ValueError(
            "trainer.compile needs a C++ compiler on a CPU, and there is none: install one (apt install g++), or leave "
            "it out"
        )
    if len(objective.optimizer_groups()) > 1:
        # Several losses are differentiated through one graph, which must not reuse its buffers in the first pass.
        functorch_config.donated_buffer = False
    layers = [
        layer
        for name, module in objective.named_modules()
        if isinstance(module, nn.ModuleList) and name.split(".")[0] not in objective.frozen_children
        for layer in module
    ]
    for layer in layers:
        layer.compile(options=_CPU_OPTIONS if on_cpu else None)
    return layers


def uncompiled() -> AbstractContextManager[object]:
    """A context in which compiled layers run as they are written: for sampling, where every call has another shape."""
    return torch.compiler.set_stance("force_eager")
