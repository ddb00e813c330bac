"""The real command, on real digits, killed with SIGKILL at twenty random moments, ends where an undisturbed run ends.

The quick version, with a toy objective and many more kills, is test_kill_and_resume.py.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NUM_KILLS = 20
NUM_STEPS = 400
HANG_GUARD_SECONDS = 600


def command(recipe: str, run_dir: Path, *flags: str) -> list[str]:
    settings = ["--trainer.num_steps", str(NUM_STEPS), "--trainer.checkpoint_every", "5"]
    quiet = ["--trainer.tensorboard", "false", "--trainer.sample_every", "200"]
    return [sys.executable, "-m", "latentlm", "train", recipe, "--out", str(run_dir), *settings, *quiet, *flags]


def finish(arguments: list[str]) -> None:
    subprocess.run(arguments, check=True, capture_output=True, timeout=HANG_GUARD_SECONDS)


def losses(run_dir: Path) -> list[dict[str, float]]:
    """Every logged number of every step, to the last bit; wall time aside."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def staging_folders(run_dir: Path) -> list[Path]:
    return list((run_dir / "checkpoints").glob(".*staging*"))


def kill_at_a_random_moment(arguments: list[str], run_dir: Path, generator: random.Random) -> tuple[bool, bool]:
    """Start the command and kill it; tells whether it was inside a save, and whether it had ended before."""
    for leftover in staging_folders(run_dir):
        shutil.rmtree(leftover)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    aim_at_save, deadline = generator.random() < 0.5, time.monotonic() + generator.uniform(3, 12)
    while process.poll() is None and (time.monotonic() < deadline or (aim_at_save and not staging_folders(run_dir))):
        time.sleep(0.001)
    finished = process.poll() is not None
    if not finished:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return bool(staging_folders(run_dir)), finished


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tokenizer recipe that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("tokenizer") / "run"
    finish(command("image_digits_tokenizer.yaml", run_dir))
    return run_dir


@pytest.mark.slow
@pytest.mark.timeout(5 * HANG_GUARD_SECONDS)
def test_a_model_killed_twenty_times_equals_one_that_never_was(tmp_path: Path, tokenizer: Path) -> None:
    flags = ("--tokenizer", str(tokenizer / "model"))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(command("image_digits.yaml", undisturbed, *flags))
    generator, inside, kills = random.Random(0), 0, 0
    arguments = command("image_digits.yaml", killed, *flags)
    while kills < NUM_KILLS:
        in_save, finished = kill_at_a_random_moment(arguments, killed, generator)
        if finished:
            # All steps were done before all kills were: compare what there is, and go on with a new run.
            assert losses(killed) == losses(undisturbed)
            shutil.rmtree(killed)
            continue
        kills += 1
        inside += in_save
    finish(arguments)
    print(f"{kills} kills, {inside} of them inside a save")
    assert inside > 0
    assert losses(killed) == losses(undisturbed)
    for name in ("model/model.safetensors", "model_raw/model.safetensors"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
