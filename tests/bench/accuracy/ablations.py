"""What each ingredient of our recipe is worth: ablations.py TRAINER DATA OUT.

Trains a short, small form of examples/recipes/small-photos.yaml, and then the same with one thing changed, on train; measures on
val. A run that has ended is not repeated, and one that was interrupted goes on, when this is called again.
"""

import copy
import json
import math
import os
import pathlib
import sys

from measure import evaluate, train_config

EPOCHS = int(os.environ.get("EPOCHS") or "8")

BASE = {
    "model": {"architecture": "improved", "inputSize": 80},
    "hyperparameters": {
        "epochs": EPOCHS,
        "batchSize": 64,
        "learningRate": 0.1,
        "optimizer": "SGD",
        "momentum": 0.9,
        "weightDecay": 0.0005,
        "schedule": "Cosine",
        "labelSmoothing": 0.1,
        "emaDecay": 0.998,
        "precision": "bfloat16",
        "trainSizes": [64],
        "augmentation": {
            "cropArea": 0.35,
            "horizontalFlip": 0.5,
            "rotationDegrees": 0,
            "translate": 0,
            "scale": 0,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
            "hue": 0,
        },
    },
}

# Name, changes of the hyperparameters, changes of the augmentation; None takes a field out.
CHANGES = [
    ("the recipe, short and small", {}, {}),
    ("without random resized crops", {}, {"cropArea": None}),
    ("Adam at 0.001 for SGD with Nesterov", {"optimizer": "Adam", "learningRate": 0.001, "momentum": None, "weightDecay": 0}, {}),
    ("without the average of the weights", {"emaDecay": None}, {}),
    ("without label smoothing", {"labelSmoothing": 0}, {}),
    ("a constant rate of 0.02", {"schedule": "Constant", "learningRate": 0.02}, {}),
    ("without flips", {}, {"horizontalFlip": 0}),
    ("without changes of colour", {}, {"brightness": 0, "contrast": 0, "saturation": 0}),
    ("without weight decay", {"weightDecay": 0}, {}),
    ("sizes 48, 64, 80 instead of 64", {"trainSizes": [48, 64, 80]}, {}),
    ("with mixup 0.2", {}, {"mixup": 0.2}),
    ("with cutmix 1.0", {}, {"cutmix": 1.0}),
]


def changed(fields: dict, changes: dict) -> dict:
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def main() -> None:
    trainer, data, out = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    rows, first = [], None
    for number, (name, hyperparameters, augmentation) in enumerate(CHANGES):
        config = copy.deepcopy(BASE)
        config["dataset"] = {"uri": f"file://{data}"}
        config["hyperparameters"] = changed(config["hyperparameters"], hyperparameters)
        config["hyperparameters"]["augmentation"] = changed(config["hyperparameters"]["augmentation"], augmentation)
        folder = out / f"{number:02}"
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{number + 1} of {len(CHANGES)}: {name}", file=sys.stderr)
        result, minutes = train_config(trainer, json.dumps(config), folder)
        said = evaluate(trainer, folder / "run" / result["checkpoint"], data, "val")
        first = first or said["accuracy"]
        rows.append((name, said["accuracy"], said["accuracy"] - first, minutes))
        error = math.sqrt(said["accuracy"] * (1 - said["accuracy"]) / said["images"])
        print(f"  val {said['accuracy']:.2%} (standard error {error:.2%}), {minutes:.1f} minutes", file=sys.stderr)
    print(f"\n{EPOCHS} epochs\n\n| | val | difference | minutes |\n|---|---|---|---|")
    for name, accuracy, difference, minutes in rows:
        print(f"| {name} | {accuracy:.2%} | {difference * 100:+.2f} | {minutes:.1f} |")
    line = {"bench": "ablations", "val_accuracy": {name: round(accuracy, 4) for name, accuracy, _, _ in rows}}
    print("\nRESULT", json.dumps(line))


if __name__ == "__main__":
    main()
