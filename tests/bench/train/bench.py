"""Compares training with PyTorch's: bench.py PYTHON STEP TRAINER DATA WORK."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

PEER = pathlib.Path(__file__).with_name("peer.py")
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = os.environ.get("SECONDS_EACH", "15")
EPOCHS = int(os.environ.get("EPOCHS", "4"))
SIZE, BATCH = 128, 64
THREADS = len(os.sched_getaffinity(0))


def tree(pid: int) -> list[int]:
    """A process and all that came of it."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    try:
        found = [int(child) for child in children.read_text().split()]
    except OSError:
        found = []
    return [pid] + [grandchild for child in found for grandchild in tree(child)]


def proportional(pid: int) -> float:
    """MB of memory of one process; what several share is divided among them."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def run(command: list, env: dict) -> tuple[str, float, float]:
    """What it prints, seconds, and the peak of the memory of all its processes in MB."""
    begun, peak = time.monotonic(), 0.0
    process = subprocess.Popen([str(word) for word in command], env=env, stdout=subprocess.PIPE, text=True)
    printed: list[str] = []
    reader = threading.Thread(target=lambda: printed.append(process.stdout.read()))
    reader.start()
    while process.poll() is None:
        peak = max(peak, sum(map(proportional, tree(process.pid))))
        time.sleep(0.25)
    seconds = time.monotonic() - begun
    reader.join()
    if process.returncode != 0:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return printed[0], seconds, peak


def main() -> None:
    python, step, trainer, data, work = sys.argv[1:6]
    train = pathlib.Path(data, "train")
    ours = {**os.environ, "LOG_LEVEL": "error", "RUST_LOG": "error"}
    # PyTorch finds its own libtorch.
    theirs = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    photos = sum(1 for path in train.rglob("*") if path.is_file())

    bare: dict[tuple[str, str], list[float]] = {}
    for number in range(ROUNDS):
        print(f"bare step, round {number + 1} of {ROUNDS}", file=sys.stderr)
        for dtype in ("float32", "bfloat16"):
            words = [SIZE, BATCH, dtype, THREADS, SECONDS]
            bare.setdefault(("ours", dtype), []).append(float(run([step, *words], ours)[0]))
            bare.setdefault(("PyTorch", dtype), []).append(float(run([python, PEER, "step", *words], theirs)[0]))
    rates = {key: statistics.median(values) for key, values in bare.items()}
    print(f"\nbare step, {SIZE} px, batch {BATCH}, {THREADS} threads, images/s\n\n| | float32 | bfloat16 |\n|---|---|---|")
    for who in ("ours", "PyTorch"):
        print(f"| {who} | {rates[who, 'float32']:.1f} | {rates[who, 'bfloat16']:.1f} |")

    def theirs_from_files(workers: int) -> tuple[float, float]:
        words = [train, SIZE, BATCH, "bfloat16", THREADS, EPOCHS, workers]
        _, seconds, peak = run([python, PEER, "files", *words], theirs)
        return photos * EPOCHS / seconds, peak

    def ours_from_files() -> tuple[float, float]:
        out = pathlib.Path(work, f"run-{time.monotonic_ns()}")
        config = pathlib.Path(work, "run.yaml")
        augmentation = {
            "cropArea": 0.35, "horizontalFlip": 0.5, "rotationDegrees": 0, "translate": 0, "scale": 0,
            "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0,
        }  # fmt: skip
        hyperparameters = {
            "epochs": EPOCHS, "batchSize": BATCH, "optimizer": "SGD", "weightDecay": 5e-4, "labelSmoothing": 0.1,
            "learningRate": 0.01, "precision": "bfloat16", "threads": THREADS, "augmentation": augmentation,
        }  # fmt: skip
        # YAML takes JSON.
        model, dataset = {"architecture": "improved", "inputSize": SIZE}, {"uri": f"file://{data}"}
        config.write_text(json.dumps({"model": model, "dataset": dataset, "hyperparameters": hyperparameters}))
        _, seconds, peak = run([trainer, "train", "--config", config, "--output", out], ours)
        return photos * EPOCHS / seconds, peak

    print("\nfrom files, the peer's best number of workers", file=sys.stderr)
    tried = {workers: theirs_from_files(workers)[0] for workers in range(THREADS + 1)}
    best = max(tried, key=tried.get)
    files: dict[str, list[tuple[float, float]]] = {}
    for number in range(ROUNDS):
        print(f"from files, round {number + 1} of {ROUNDS}", file=sys.stderr)
        files.setdefault("ours", []).append(ours_from_files())
        files.setdefault("PyTorch", []).append(theirs_from_files(best))
    medians = {who: [statistics.median(column) for column in zip(*rows)] for who, rows in files.items()}
    print(f"\nfrom {photos} files, {EPOCHS} epochs, bfloat16, with the start of the process; PyTorch with {best} workers")
    print(f"(images/s by workers: {', '.join(f'{n}: {rate:.1f}' for n, rate in tried.items())})\n")
    print("| | images/s | peak memory MB |\n|---|---|---|")
    for who, (rate, peak) in medians.items():
        print(f"| {who} | {rate:.1f} | {peak:.0f} |")

    ratio = {dtype: rates["ours", dtype] / rates["PyTorch", dtype] for dtype in ("float32", "bfloat16")}
    line = {
        "bench": "train",
        "ratio_step": round(min(ratio.values()), 3),
        "ratio_from_files": round(medians["ours"][0] / medians["PyTorch"][0], 3),
        "ratio_memory": round(medians["ours"][1] / medians["PyTorch"][1], 3),
    }
    print("\nRESULT", json.dumps(line))


if __name__ == "__main__":
    main()
