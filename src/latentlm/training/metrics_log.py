"""What a run tells: a progress bar, metrics.jsonl (every step, always), TensorBoard (where installed), sample pictures.

Losses are written with all their digits, so that two runs can be compared for exact equality.

    {"step": 12, "skipped": false, "seconds": 3.1, "model/total": 0.8371, "model/grad_norm": 1.2, "model/lr": 0.0003}
    {"step": 50, "evaluation": {"psnr": 21.4}}
"""

import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from latentlm.storage import write_failed, write_file_atomically
from latentlm.training.step import StepRecord

METRICS_NAME = "metrics.jsonl"
SAMPLES_FOLDER = "samples"
"""Where the sample grids of a run are."""


class MetricsLog:
    """The log of one run; only rank 0 makes one.

    Args:
        run_dir: Gets metrics.jsonl, tensorboard/ and samples/.
        num_steps: Length of the run.
        start_step: Steps done by the checkpoint that the run continues from; later lines of an earlier process are cut.
        items_per_step: Over all micro-steps and ranks, for the rate.
        tensorboard: Write TensorBoard files too, if it is installed.
        description: Stands before the bar.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        num_steps: int,
        start_step: int,
        items_per_step: int,
        tensorboard: bool = True,
        description: str = "train",
    ) -> None:
        self.run_dir = run_dir
        self.items_per_step = items_per_step
        truncate_metrics(run_dir / METRICS_NAME, start_step)
        self._file = (run_dir / METRICS_NAME).open("ab", buffering=0)
        self._board = _open_tensorboard(run_dir / "tensorboard", start_step) if tensorboard else None
        # A terminal is refreshed often; a log file should not fill with bars.
        interval = 0.2 if sys.stderr.isatty() else 15.0
        self._bar = tqdm(
            total=num_steps, initial=start_step, desc=description, unit="step", mininterval=interval, dynamic_ncols=True
        )
        self._start_time = self._shown_time = time.perf_counter()
        self._shown_step = start_step

    def add_steps(self, records: Sequence[StepRecord]) -> None:
        """Append steps to metrics.jsonl."""
        seconds = round(time.perf_counter() - self._start_time, 3)
        self._append(
            {"step": record.step, "skipped": record.skipped, "seconds": seconds, **_jsonable(record.values)}
            for record in records
        )

    def show(self, record: StepRecord) -> None:
        """Move the bar to a step, with its losses, learning rates and the rate since the last call."""
        now = time.perf_counter()
        rate = (record.step - self._shown_step) * self.items_per_step / max(now - self._shown_time, 1e-9)
        self._shown_step, self._shown_time = record.step, now
        shown = {name: f"{value:.4g}" for name, value in record.values.items() if not name.endswith("/grad_norm")}
        self._bar.set_postfix({**shown, "items/s": f"{rate:.3g}"}, refresh=False)
        self._bar.update(record.step - self._bar.n)
        if self._board is not None:
            for name, value in {**record.values, "items_per_second": rate}.items():
                self._board.add_scalar(name, value, record.step)

    def add_evaluation(self, step: int, values: Mapping[str, float | int]) -> None:
        """Write the numbers of an evaluation after `step` steps."""
        self._append([{"step": step, "evaluation": _jsonable(values)}])
        tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()), sys.stderr)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"evaluation/{name}", value, step)

    def add_samples(self, step: int, picture: UInt8[Tensor, "3 H W"]) -> None:
        """Write samples/step_XXXXXX.png."""
        folder = self.run_dir / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(buffer, format="png")
        write_file_atomically(folder / f"step_{step:06d}.png", buffer.getvalue())
        if self._board is not None:
            self._board.add_image("samples", picture.cpu(), step)

    def add_sample_files(self, step: int, files: Mapping[str, bytes]) -> None:
        """Write samples/step_XXXXXX_NAME for each."""
        folder = self.run_dir / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            write_file_atomically(folder / f"step_{step:06d}_{name}", data)

    def sync(self) -> None:
        """Put metrics.jsonl on disk for good; a checkpoint must not be newer than the log of its steps."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files and the bar."""
        self._file.close()
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append lines, unbuffered: what this returns from has reached the system, and a full disk is met here."""
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            raise write_failed(self.run_dir / METRICS_NAME, error, len(data)) from error


def truncate_metrics(path: Path, last_step: int) -> None:
    """Cut metrics.jsonl after the lines of `last_step`: the steps after it are about to be taken again."""
    if not path.exists():
        return
    keep = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > last_step:
                break
            keep += len(line)
    os.truncate(path, keep)


def _jsonable(values: Mapping[str, float | int]) -> dict[str, float | str]:
    """JSON has no NaN and no infinity: those become strings."""
    return {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in values.items()}


def _open_tensorboard(folder: Path, start_step: int) -> Any:
    """A TensorBoard writer that hides what an earlier process wrote after `start_step`; None if not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start_step + 1)
