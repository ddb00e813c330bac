"""Weight files of others: tensors come in, code does not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentlm.foreign_weights import read_foreign_weights


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_pytorch_files_are_read_bare_or_wrapped(wrapper: str | None, tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(3.0)}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "weights.pth")
    assert read_foreign_weights(tmp_path / "weights.pth")["a.weight"].tolist() == [0, 1, 2]


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    save_file({"a.weight": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    assert read_foreign_weights(tmp_path / "weights.safetensors")["a.weight"].tolist() == [0, 1, 2]


class Trap:
    """Unpickling one would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"a": Trap(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="convert it to safetensors"):
        read_foreign_weights(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_garbage_and_a_lone_tensor_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_foreign_weights(tmp_path / "none.pth")
    (tmp_path / "garbage.pth").write_bytes(b"\x00garbage")
    with pytest.raises(ValueError, match="no file of plain tensors"):
        read_foreign_weights(tmp_path / "garbage.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        read_foreign_weights(tmp_path / "tensor.pth")
