"""Peak memory of calibration: ResNet-50 at 224, with few and with many samples.

    python bench/calibration_memory.py [--samples 32 512]

The network is built from a config of transformers (seeded weights; nothing is downloaded) and
exported; the samples are drawn by the seed. Each count is observed in a process of its own, with
nothing kept from the one before. Prints the peak resident memory of that process and of its worker
as the kernel counts it, and by how much more samples raise it. Exits with 1 above 5 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALLOWED = 0.05


def export_resnet(path: Path) -> None:
    """ResNet-50 with seeded weights, input float32 [batch, 3, 224, 224]."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig()).eval()

    class Logits(torch.nn.Module):
        """The logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """float32 [batch, 3, 224, 224] -> float32 [batch, 2]."""
            logits: torch.Tensor = self.model(image).logits
            return logits

    program = torch.onnx.export(
        Logits(),
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        input_names=["image"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
    )
    assert program is not None
    program.save(str(path))


def observe(path: Path, samples: int) -> dict[str, float]:
    """Observes all that a placement may ask for; the peaks in MB of this process and its worker."""
    import onnx

    from optimc.calibration.observable import likely_values
    from optimc.calibration.observe import ActivationCalibration
    from optimc.calibration.random_data import RandomDataset
    from optimc.core import worker
    from optimc.testing.calibrated import FolderStore
    from optimc.testing.runs import as_model

    peaks: list[float] = []
    close = worker.Worker.close

    def closing(self: worker.Worker) -> None:
        peaks.append(_peak_mb(self.pid))
        close(self)

    worker.Worker.close = closing  # type: ignore[method-assign]
    model = as_model(onnx.load(path))
    data = RandomDataset(model.signature, {}, {}, seed=0, samples=samples)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        calibration = ActivationCalibration(model, data, 0, FolderStore(Path(folder)))
        names = likely_values(model.ir)
        found = calibration.statistics(model, names)
    assert len(found) == len(names)
    seconds = time.perf_counter() - started
    return {"worker": max(peaks), "build": _peak_mb(None), "seconds": seconds, "values": len(found)}


def _peak_mb(pid: int | None) -> float:
    """``VmHWM`` of a process, in MB of 10^6 bytes."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("this kernel does not count peak memory")


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", nargs=2, type=int, default=[32, 512])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--observe", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.observe:
        print(json.dumps(observe(arguments.model, arguments.observe)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or Path(folder) / "resnet50.onnx"
        if not path.exists():
            export_resnet(path)
        rows = [_row(path, count) for count in arguments.samples]
    print("| samples | values | worker's peak, MB | build's peak, MB | together, MB | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count, row in zip(arguments.samples, rows, strict=True):
        both = row["worker"] + row["build"]
        print(
            f"| {count} | {row['values']:.0f} | {row['worker']:.0f} | {row['build']:.0f} |"
            f" {both:.0f} | {row['seconds']:.1f} |"
        )
    few, many = (row["worker"] + row["build"] for row in rows)
    print(f"\n{arguments.samples[1]} samples take {many / few - 1:+.1%} memory")
    sys.exit(0 if many <= few * (1 + ALLOWED) else 1)


def _row(path: Path, samples: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--model", str(path), "--observe", str(samples)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
