"""What is compared with: a FastAPI service on eager PyTorch as such services are written, and the bare forward pass."""

import io
import multiprocessing
import os
import pathlib
import sys
import time

import numpy
import torch
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "parity"))
from reference import Improved  # noqa: E402

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def load(checkpoint):
    model = Improved(2)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model_state_dict"])
    return model.eval()


def transform(image):
    pixels = numpy.asarray(image.convert("RGB").resize((224, 224), Image.BILINEAR)).copy()
    return (torch.from_numpy(pixels).permute(2, 0, 1).float().div(255) - MEAN) / STD


def make(folder):
    """Writes a checkpoint of a network that was never trained, and photos of smooth noise where none are given."""
    folder = pathlib.Path(folder)
    torch.manual_seed(0)
    model = Improved(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    # Answers from sure to unsure, so that comparing them says something.
    model.fc.weight.data.mul_(30)
    torch.save({"epoch": 1, "model_state_dict": model.state_dict()}, folder / "model.pth")
    rng = numpy.random.default_rng(0)
    (folder / "photos").mkdir(exist_ok=True)
    for i in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), numpy.uint8))
        fine = coarse.resize((500, 375), Image.BICUBIC)
        noisy = numpy.asarray(fine).astype(numpy.int16) + rng.integers(-12, 13, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8)).save(folder / "photos" / f"{i:02}.jpg", quality=90)


def probabilities(checkpoint, photos):
    """What PyTorch says about each photo: a line with its name and the second class's probability."""
    model = load(checkpoint)
    with torch.inference_mode():
        for photo in photos:
            logits = model(transform(Image.open(photo))[None], None)
            print(photo, float(torch.softmax(logits, 1)[0, 1]))


def forward(checkpoint, workers, threads, seconds):
    """Passes of one image each, channels-last, in so many processes; prints the rate and CPU seconds of one."""
    with multiprocessing.get_context("spawn").Pool(int(workers)) as pool:
        results = pool.starmap(passes, [(checkpoint, int(threads), float(seconds))] * int(workers))
    count = sum(n for n, _, _ in results)
    print(sum(n / wall for n, wall, _ in results), sum(cpu for _, _, cpu in results) / count)


def passes(checkpoint, threads, seconds):
    torch.set_num_threads(threads)
    model = load(checkpoint).to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(5):
            model(x, None)
        count, begun, cpu = 0, time.monotonic(), time.process_time()
        while time.monotonic() - begun < seconds:
            model(x, None)
            count += 1
        return count, time.monotonic() - begun, time.process_time() - cpu


def fastapi(checkpoint, port):
    import datetime

    import uvicorn
    from fastapi import FastAPI, File, HTTPException, UploadFile

    app = FastAPI()
    model = load(checkpoint)

    @app.get("/readyz")
    async def ready():
        return {"status": "ready"}

    @app.post("/predict")
    async def predict(file: UploadFile = File(...)):
        if not (file.content_type or "").startswith("image/"):
            raise HTTPException(400, "File must be an image")
        begun = time.time()
        image = Image.open(io.BytesIO(await file.read()))
        with torch.no_grad():
            shares = torch.softmax(model(transform(image)[None], None), 1)[0].tolist()
        names = ["cat", "dog"]
        best = max(range(2), key=shares.__getitem__)
        return {
            "prediction": names[best],
            "confidence": shares[best],
            "probabilities": dict(zip(names, shares)),
            "timestamp": datetime.datetime.now().isoformat(),
            "processing_time_ms": (time.time() - begun) * 1000,
        }

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command, *arguments = sys.argv[1:]
    if command == "probabilities":
        probabilities(arguments[0], arguments[1:])
    else:
        {"make": make, "forward": forward, "fastapi": fastapi}[command](*arguments)
