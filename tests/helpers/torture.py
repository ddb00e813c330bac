"""Kills, full disks and several ranks for real, on children forked from a process that imported PyTorch and did nothing
else: a fresh interpreter for each of hundreds of trials would cost minutes.

    python torture.py kill ROOT --num-kills 20 --seed 0     report on stdout as JSON; runs stay in ROOT for comparison
    python torture.py disk-full ROOT
    python torture.py ranks ROOT
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import PIL.PngImagePlugin  # noqa: F401 - loaded by the first picture
import torch
import torch._dynamo  # loaded by the first optimizer step: once here, or seconds in every child
from toy_training import ToyObjective, make_loader, make_recipe, make_trainer

from latentlm.storage import StorageError, list_step_folders, newest_verified, step_folder
from latentlm.training import checkpoint

# Far above anything seen on a busy machine: these only end a test that would hang.
CHILD_SECONDS = 120.0

KILL_RECIPE = make_recipe(num_steps=150, checkpoint_every=2, num_accumulation_steps=2, sample_every=25)


def start_child(function: Callable[[], object], log: Path) -> int:
    """Fork a child that runs `function`; its exit code is 0, or 1 after an exception, which goes to `log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        function()
        code = 0
    except BaseException:  # noqa: BLE001 - the border of the process: whatever it was, it goes to the log
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_child(pid: int, seconds: float = CHILD_SECONDS) -> int | None:
    """The child's exit code (negative: the signal that ended it); None if it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    return None


def kill_child(pid: int) -> int:
    """SIGKILL; the exit code is 0 if the child was faster."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_child(function: Callable[[], object], log: Path) -> int:
    pid = start_child(function, log)
    code = wait_child(pid)
    if code is None:
        kill_child(pid)
        raise TimeoutError(f"a child ran longer than {CHILD_SECONDS} s")
    return code


# SIGKILL at random moments


def train(run_dir: Path) -> None:
    """What "the same command" is in these trials."""
    make_trainer(run_dir, KILL_RECIPE).fit()


def train_trusting(run_dir: Path) -> None:
    """The planted fault: checkpoints are written in place and the newest is believed."""

    def write_in_place(target: Path, write: Callable[[Path], None], *, step: int = 0, replace: bool = False) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        write(target)

    def newest(parent: Path, on_rejected: object) -> Path | None:
        return next((folder for _, folder in list_step_folders(parent)), None)

    checkpoint.publish_folder = write_in_place
    checkpoint.newest_verified = newest
    checkpoint.verify_folder = lambda folder: None
    train(run_dir)


def wait_for_saves(checkpoints: Path, num_saves: int, pid: int) -> int | None:
    """Wait until the `num_saves`-th staging folder appears; the child's exit code if it ends before."""
    seen: set[str] = set()
    while len(seen) < num_saves:
        code = wait_child(pid, seconds=0.001)
        if code is not None:
            return code
        if checkpoints.is_dir():
            seen |= {name for name in os.listdir(checkpoints) if name.startswith(".step") and "staging" in name}
    return None


def kill_at_random(root: Path, *, num_kills: int, seed: int, trusting: bool) -> dict[str, Any]:
    """Train runs to their end under SIGKILLs: every second one after a staging folder appeared, the rest any time.

    Returns:
        How many kills there were and how many fell inside a save; the finished runs; and what went wrong.
    """
    rng = random.Random(seed)
    log = root / "children.log"
    begin = time.monotonic()
    assert run_child(partial(train, root / "reference"), log) == 0, log.read_text()
    seconds_of_a_run = time.monotonic() - begin
    report: dict[str, Any] = {"kills": 0, "inside_a_save": 0, "finished_runs": [], "failures": [], "seed": seed}
    for number in itertools.count():
        run_dir = root / f"run_{number}"
        checkpoints = run_dir / "checkpoints"
        had_good = False
        code: int | None = None
        while code is None or code == -signal.SIGKILL:
            pid = start_child(partial(train_trusting if trusting else train, run_dir), log)
            if report["kills"] >= num_kills:
                code = wait_child(pid)
                break
            if report["kills"] % 2 == 0 and not trusting:
                code = wait_for_saves(checkpoints, rng.randint(1, 4), pid)
                time.sleep(rng.uniform(0, 0.006))
            else:
                code = wait_child(pid, seconds=rng.uniform(0, seconds_of_a_run / 4))
            if code is None:
                code = kill_child(pid)
            if code != -signal.SIGKILL:
                break
            report["kills"] += 1
            if checkpoints.is_dir():
                report["inside_a_save"] += any("staging" in name for name in os.listdir(checkpoints))
                is_good = newest_verified(checkpoints, lambda folder, error: None) is not None
                if had_good and not is_good and not trusting:
                    report["failures"].append(f"kill {report['kills']} left no good checkpoint")
                had_good = had_good or is_good
        if code != 0:
            report["failures"].append(f"{run_dir.name} ended with exit code {code} after {report['kills']} kills")
            break
        report["finished_runs"].append(run_dir.name)
        if report["kills"] >= num_kills:
            break
    return report


# A full disk

DISK_FULL_EXIT_CODE = 3


def cut_loader(last_batch: int, start_batch: int) -> Iterator[Mapping[str, Any]]:
    return itertools.islice(make_loader(start_batch), max(0, last_batch - start_batch))


def disk_full(root: Path, *, num_sizes: int) -> dict[str, Any]:
    """Resume a run under a limit on the size of any file, from nothing to enough, and once more without a limit."""
    recipe = make_recipe(checkpoint_every=3, sample_every=4)
    log = root / "children.log"
    run_child(lambda: make_trainer(root / "reference", recipe).fit(), log)
    # Ends for want of data between the checkpoints of steps 3 and 6.
    run_child(lambda: make_trainer(root / "cut", recipe, make_loader=partial(cut_loader, 4)).fit(), log)
    largest = max(path.stat().st_size for path in (root / "reference").rglob("*") if path.is_file())
    trials = []
    for number in range(num_sizes):
        limit = largest * number // (num_sizes - 1)
        run_dir = Path(shutil.copytree(root / "cut", root / f"limit_{limit}"))
        message = run_dir / "message.txt"

        def limited(run_dir: Path = run_dir, limit: int = limit, message: Path = message) -> None:
            trainer = make_trainer(run_dir, recipe)
            # Python ignores SIGXFSZ, so that a write beyond the limit is the error EFBIG, as ENOSPC would be. The
            # progress bar goes elsewhere: the log of the children is under the same limit.
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try:
                    trainer.fit()
                except StorageError as error:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                    message.write_text(f"{error.code}: {error}")
                    os._exit(DISK_FULL_EXIT_CODE)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        code = run_child(limited, log)
        rejected: list[str] = []
        good = newest_verified(run_dir / "checkpoints", lambda folder, error, sink=rejected: sink.append(str(error)))
        left = [str(path) for path in (run_dir, run_dir / "checkpoints") for path in path.glob(".*staging*")]
        trials.append(
            {
                "limit": limit,
                "exit_code": code,
                "good": good.name if good else None,
                "rejected": rejected,
                "left": left,
                "message": message.read_text() if message.exists() else "",
                "second_exit_code": run_child(lambda run_dir=run_dir: make_trainer(run_dir, recipe).fit(), log),
                "run": run_dir.name,
            }
        )
    return {"trials": trials, "first_good": step_folder(Path(), 3).name}


# Two ranks


def train_as_rank(root: Path, rank: int, bad_step: int | None) -> None:
    import torch.distributed as dist

    class BadOnRankOne(ToyObjective):
        def losses(self, batch: Any, *, step: int, totals: Any) -> dict[str, dict[str, torch.Tensor]]:
            losses = super().losses(batch, step=step, totals=totals)
            factor = float("nan") if step == bad_step and rank == 1 else 1.0
            return {"model": {name: loss * factor for name, loss in losses["model"].items()}}

    def every_second_batch(start_batch: int) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(make_loader(2 * start_batch), rank, None, 2)

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    recipe = make_recipe(dropout=0.0)
    make_trainer(root, recipe, objective=BadOnRankOne(recipe), make_loader=every_second_batch).fit()
    dist.destroy_process_group()


def two_ranks(root: Path) -> dict[str, Any]:
    """Train on two ranks, with and without a bad step on one of them, and on one rank that accumulates both parts."""
    log = root / "children.log"
    one = make_recipe(dropout=0.0, num_accumulation_steps=2)
    codes = [run_child(lambda: make_trainer(root / "one", one).fit(), log)]
    for name, bad_step in (("two", None), ("bad", 2)):
        (root / name).mkdir()
        pids = [start_child(partial(train_as_rank, root / name, rank, bad_step), log) for rank in (0, 1)]
        codes += [wait_child(pid) for pid in pids]
    return {"exit_codes": codes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kill", "disk-full", "ranks"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--num-kills", type=int, default=20)
    parser.add_argument("--num-sizes", type=int, default=13)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trusting", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "kill":
        report = kill_at_random(
            arguments.root, num_kills=arguments.num_kills, seed=arguments.seed, trusting=arguments.trusting
        )
    elif arguments.what == "disk-full":
        report = disk_full(arguments.root, num_sizes=arguments.num_sizes)
    else:
        report = two_ranks(arguments.root)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
