"""Trains with a recipe and measures what comes of it: measure.py TRAINER RECIPE DATA OUT."""

import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time


def train(trainer: str, recipe: str, data: str, out: pathlib.Path) -> tuple[dict, float]:
    """Trains with a file of examples/recipes on this dataset."""
    text = re.sub(r"(?m)^dataset:.*$", f"dataset: {{uri: {json.dumps('file://' + data)}}}", pathlib.Path(recipe).read_text())
    return train_config(trainer, text, out)


def train_config(trainer: str, text: str, out: pathlib.Path) -> tuple[dict, float]:
    """The result of the run of this configuration, and the minutes that all its attempts took."""
    config, spent, result = out / "recipe.yaml", out / "seconds", out / "result.json"
    if config.exists() and config.read_text() != text:
        sys.exit(f"{out} holds a run of another recipe or dataset; remove it, or name another folder in OUT")
    config.write_text(text)
    before = float(spent.read_text()) if spent.exists() else 0.0
    if result.exists() and "result" in (ended := json.loads(result.read_text())):
        return ended["result"], before / 60
    command = [trainer, "train", "--config", config, "--output", out / "run", "--termination-log", result]
    begun = time.monotonic()
    with subprocess.Popen(command) as process:
        # The trainer writes a checkpoint when it is told to stop.
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while process.poll() is None:
            try:
                process.wait(timeout=10)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                pass
            spent.write_text(str(before + time.monotonic() - begun))
    if process.returncode != 0:
        sys.exit("the training did not end well, see above; run this again to go on from its newest checkpoint")
    return json.loads(result.read_text())["result"], float(spent.read_text()) / 60


def evaluate(trainer: str, checkpoint: pathlib.Path, data: str, split: str) -> dict:
    """What the checkpoint makes of one split, each photo seen once."""
    path = next((p for name in (split, f"{split}.tar") if (p := pathlib.Path(data, name)).exists()), None)
    if path is None:
        sys.exit(f"{data} has neither {split}/ nor {split}.tar")
    command = [trainer, "evaluate", "--checkpoint", checkpoint, "--data", path, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def interval(right: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, 95 %."""
    z, share = 1.96, right / count
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def main() -> None:
    trainer, recipe, data, out = sys.argv[1], sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
    result, minutes = train(trainer, recipe, data, out)
    checkpoint = out / "run" / result["checkpoint"]
    measured = {split: evaluate(trainer, checkpoint, data, split) for split in ("val", "test")}
    print("\n| split | photos | accuracy | 95 % interval | precision | recall | F1 |\n|---|---|---|---|---|---|---|")
    rights = counts = 0
    for split, said in measured.items():
        count = said["images"]
        right = said["accuracy"] * count
        rights, counts = rights + right, counts + count
        low, high = interval(right, count)
        numbers = " | ".join(f"{said[name]:.4f}" for name in ("precision", "recall", "f1"))
        print(f"| {split} | {count} | {said['accuracy']:.2%} | {low:.2%} to {high:.2%} | {numbers} |")
    low, high = interval(rights, counts)
    print(f"| both | {counts} | {rights / counts:.2%} | {low:.2%} to {high:.2%} | | | |")
    print(f"\nbest of {result['epochs']} epochs on val; {minutes:.1f} minutes\n")
    line = {
        "bench": "accuracy",
        "val_accuracy": measured["val"]["accuracy"],
        "test_accuracy": measured["test"]["accuracy"],
        "minutes": round(minutes, 1),
        "checkpoint": str(checkpoint),
    }
    print("RESULT", json.dumps(line))


if __name__ == "__main__":
    main()
