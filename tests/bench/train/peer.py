"""What training is compared with: PyTorch's bare step, and training from files through a DataLoader with torchvision's transforms.

peer.py step SIZE BATCH float32|bfloat16 THREADS SECONDS        prints images a second
peer.py files FOLDER SIZE BATCH float32|bfloat16 THREADS EPOCHS WORKERS
peer.py make FOLDER COUNT                                       draws photos
"""

import pathlib
import sys
import time

import numpy
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "parity"))
from reference import Improved  # noqa: E402

# As ImageNet's, like everybody's.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def begin(threads):
    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    model = Improved(2).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True)
    return model, optimizer


def one(model, optimizer, images, labels, dtype):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(images, None)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def step(size, batch, dtype, threads, seconds):
    model, optimizer = begin(threads)
    images = torch.randn(int(batch), 3, int(size), int(size)).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(2, (int(batch),))
    for _ in range(5):
        one(model, optimizer, images, labels, dtype)
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < float(seconds):
        one(model, optimizer, images, labels, dtype)
        done += int(batch)
    print(done / (time.monotonic() - begun))


class Files(torch.utils.data.Dataset):
    """What ImageFolder is: a folder for each class."""

    def __init__(self, folder, size):
        from torchvision import transforms as t

        classes = sorted(path.name for path in pathlib.Path(folder).iterdir())
        self.items = [(path, classes.index(name)) for name in classes for path in sorted(pathlib.Path(folder, name).iterdir())]
        self.transform = t.Compose(
            [
                t.RandomResizedCrop(size, scale=(0.35, 1.0)),
                t.RandomHorizontalFlip(),
                t.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
                t.ToTensor(),
                t.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        path, label = self.items[index]
        return self.transform(Image.open(path).convert("RGB")), label


def files(folder, size, batch, dtype, threads, epochs, workers):
    model, optimizer = begin(threads)
    loader = torch.utils.data.DataLoader(
        Files(folder, int(size)),
        batch_size=int(batch),
        shuffle=True,
        num_workers=int(workers),
        persistent_workers=int(workers) > 0,
    )
    for _ in range(int(epochs)):
        for images, labels in loader:
            # A training that looks at its loss, as ours does to stop when it diverges.
            one(model, optimizer, images.contiguous(memory_format=torch.channels_last), labels, dtype).item()


def make(folder, count):
    rng = numpy.random.default_rng(0)
    for index in range(int(count)):
        path = pathlib.Path(folder, ("cat", "dog")[index % 2], f"{index:05}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), numpy.uint8))
        fine = numpy.asarray(coarse.resize((500, 375), Image.BICUBIC)).astype(numpy.int16)
        noisy = fine + rng.integers(-12, 13, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8)).save(path, quality=90)


if __name__ == "__main__":
    {"step": step, "files": files, "make": make}[sys.argv[1]](*sys.argv[2:])
