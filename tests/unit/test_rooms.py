"""The package is layered: imports go one way, and importing it is free of side effects."""

import ast
import subprocess
import sys
from pathlib import Path

import latentlm

PACKAGE = Path(latentlm.__file__).parent

# A room may import from rooms that stand before it.
ORDER = [
    {"nn", "diffusion", "config", "storage", "pictures"},
    {"data", "pretrained", "foreign_weights"},
    {"sequence", "tokenizers"},
    {"models"},
    {"generation"},
    {"training"},
    {"evaluation", "baselines"},
    {"experiments"},
    {"catalog"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imports_of(path: Path) -> set[str]:
    """Rooms of ours that a file imports, lazily or not."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("latentlm.")}
    return rooms


def test_imports_go_one_way() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        wrong += [
            f"{path.relative_to(PACKAGE)} imports {other}"
            for other in imports_of(path)
            if other != room and LEVEL[other] >= LEVEL[room]
        ]
    assert not wrong


def test_diffusion_knows_nothing_of_the_rest() -> None:
    assert all(imports_of(path) <= {"diffusion"} for path in (PACKAGE / "diffusion").glob("*.py"))


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)


def test_importing_prints_nothing_and_loads_no_optional_dependency() -> None:
    code = (
        "import sys, latentlm\n"
        "[getattr(latentlm, name) for name in latentlm.__all__]\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "optional = {'sklearn', 'tensorboard', 'matplotlib', 'pyarrow', 'webdataset', 'diffusers',\n"
        "            'transformers', 'peft', 'tiktoken', 'tokenizers'}\n"
        "loaded = optional & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = run(code)
    assert result.stdout == result.stderr == ""


def test_a_bare_import_does_not_even_load_torch() -> None:
    assert run("import sys, latentlm\nprint('torch' in sys.modules)").stdout == "False\n"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    assert not hasattr(latentlm, "no_such_name")
