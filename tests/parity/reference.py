"""What PyTorch and Pillow do, for the parity tests of trainer/model to compare with.

    reference.py COMMAND FOLDER

Each command reads `in.pth` from the folder, where it needs anything, and writes its answer there.
"""

import collections
import hashlib
import json
import pathlib
import struct
import sys
import zlib

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class Improved(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.fc = nn.Linear(256, classes)

    def forward(self, x, mask):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Simple(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, 3, 1, 1)
        self.bn3 = nn.BatchNorm2d(128)
        self.fc1 = nn.Linear(128 * 28 * 28, 256)
        self.fc2 = nn.Linear(256, classes)

    def forward(self, x, mask):
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.max_pool2d(F.relu(bn(conv(x))), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        # Dropout with the mask of the other side: its draws are its own.
        return self.fc2(x * mask if self.training else x)


def network(folder):
    """One evaluation and one training step on the given weights and images."""
    given = torch.load(folder / "in.pth", weights_only=True)
    images, target, mask = given["images"], given["target"], given["mask"]
    model = {"improved": Improved, "simple": Simple}[given["architecture"]](given["classes"])
    assert list(model.state_dict()) == list(given["model_state_dict"]), "names or their order differ"
    model.load_state_dict(given["model_state_dict"], strict=True)
    with torch.no_grad():
        evaluation = model.eval()(images, mask)
        with torch.autocast("cpu", torch.bfloat16):
            bfloat16 = model(images, mask).float()
    # One layout for both sides: a sum in another order can turn the choice of a maximum, and gradients with it.
    model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    training = model.train()(images, mask)
    F.cross_entropy(training, target).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images, mask)
    half_loss = F.cross_entropy(half.float(), target)
    half_loss.backward()
    torch.save(
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "evaluation": evaluation,
            "bfloat16": bfloat16,
            "training": training.detach(),
            "gradients": gradients,
            "state": state,
            "bfloat16_loss": half_loss.detach(),
            "bfloat16_gradients": {name: p.grad for name, p in model.named_parameters()},
        },
        folder / "out.pth",
    )


def training(folder):
    """Some steps of training in float64 from the given weights on the given batches."""
    given = torch.load(folder / "in.pth", weights_only=True)
    model = Improved(given["classes"])
    model.load_state_dict(given["model_state_dict"], strict=True)
    model = model.double().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=len(given["batches"]), pct_start=0.3, cycle_momentum=False)
    losses = []
    for images, labels in given["batches"]:
        images = images.double().to(memory_format=torch.channels_last)
        weights = given["weights"].double()
        whole = weights[labels].sum()
        optimizer.zero_grad()
        loss = 0.0
        # A batch in parts: the gradients add up.
        for part, own in zip(images.split(given["micro"]), labels.split(given["micro"])):
            share = F.cross_entropy(model(part, None), own, weights, reduction="sum", label_smoothing=0.1) / whole
            share.backward()
            loss += share.item()
        losses.append(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.save({"losses": losses, "state": model.state_dict()}, folder / "out.pth")


def describe(value):
    """A value as JSON, tensors by type, shape and digest."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        numbers = value.contiguous().reshape(-1).view(torch.uint8) if value.numel() else torch.zeros(0, dtype=torch.uint8)
        digest = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "sha256": digest}
    if isinstance(value, dict):
        kind = "OrderedDict" if isinstance(value, collections.OrderedDict) else "dict"
        return {kind: [[describe(key), describe(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [describe(item) for item in value]}
    # JSON has one kind of number.
    return {"float": value.hex()} if isinstance(value, float) else value


def load(folder):
    """Describes a file as both ways to load it see it."""
    read = torch.load(folder / "in.pth", weights_only=True)
    mapped = torch.load(folder / "in.pth", weights_only=True, mmap=True)
    (folder / "out.json").write_text(json.dumps([describe(read), describe(mapped)]))


def save(folder):
    """Saves whatever torch.save saves, with descriptions; and what a reader must refuse."""
    torch.manual_seed(0)
    model = Improved(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32), None), torch.tensor([0, 1, 1, 0])).backward()
    optimizer.step()
    numbers = torch.arange(60, dtype=torch.float32)
    dtypes = "float16 bfloat16 float32 float64 uint8 int8 int16 int32 int64 bool".split()
    values = {
        "state_dict": model.state_dict(),
        "plain": dict(model.state_dict()),
        "nested": {
            "epoch": 3,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "val_acc": 92.12,
            "history": {"train_loss": [0.5, 0.25], "train_acc": [50.0, 75.0], "val_loss": [], "val_acc": []},
        },
        "parameter": {"weight": nn.Parameter(torch.randn(2, 3)), "frozen": nn.Parameter(torch.ones(1), requires_grad=False)},
        "bfloat16": {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in model.state_dict().items()},
        "dtypes": {name: torch.tensor([0, 1, 1, 0, 1]).to(getattr(torch, name)) for name in dtypes},
        "strided": {
            "transposed": numbers.reshape(3, 20).t(),
            "step": numbers[5:50:3],
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "repeated": torch.tensor([1.5, 2.5]).unsqueeze(1).expand(2, 3),
            "shared": numbers[10:20],
            "whole": numbers,
        },
        "shapes": {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "one": torch.ones(1, 1, 1), "size": torch.ones(2, 5).shape},
        "values": [None, True, False, 0, 255, 256, 65536, -1, 2**31, -(2**40), 2**62, 1.5, -0.0, float("inf"), "", "Katze \u732b", (), (1,), [], {}, {1: {2: [3]}}],
    }
    for name, value in values.items():
        torch.save(value, folder / f"{name}.pth")
    # As from a machine with GPUs: the location of each storage is another.
    tag, torch.serialization.location_tag = torch.serialization.location_tag, lambda storage: "cuda:1"
    torch.save(values["nested"], folder / "cuda.pth")
    torch.serialization.location_tag = tag
    assert b"cuda:1" in (folder / "cuda.pth").read_bytes()
    values["cuda"] = values["nested"]
    (folder / "values.json").write_text(json.dumps({name: describe(value) for name, value in values.items()}))
    torch.save(model.state_dict(), folder / "refused-legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(model, folder / "refused-module.pth")
    torch.jit.script(nn.Linear(2, 2)).save(folder / "refused-script.pth")


def many(folder):
    """Reads more tensors than 16 bits can count, and writes them anew."""
    torch.save(torch.load(folder / "in.pth", weights_only=True), folder / "out.pth")


def resize(folder):
    """Resizes each image to each size with Pillow."""
    jobs = torch.load(folder / "in.pth", weights_only=True)
    out = []
    for image, width, height in jobs:
        resized = Image.fromarray(image.numpy()).resize((width, height), Image.BILINEAR)
        out.append(torch.from_numpy(numpy.asarray(resized).copy()))
    torch.save(out, folder / "out.pth")


def preprocess(folder):
    """The evaluation transform of the reference."""
    given = torch.load(folder / "in.pth", weights_only=True)
    image = Image.fromarray(given["image"].numpy()).resize((given["size"],) * 2, Image.BILINEAR)
    x = torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.save([(x - mean) / std], folder / "out.pth")


def decode(folder):
    """Writes images in all formats and modes, and what Pillow makes of each."""
    rng = numpy.random.default_rng(0)
    y, x = numpy.mgrid[0:61, 0:83]
    smooth = numpy.stack([x * 3, y * 4, (x + y) * 2], -1).astype(numpy.uint8)
    rgb = Image.fromarray(smooth)
    rgba = Image.fromarray(numpy.concatenate([smooth, rng.integers(0, 256, (61, 83, 1), numpy.uint8)], -1))
    deep = Image.fromarray((x * 700 + y * 13).astype(numpy.uint16))
    files = {
        "rgb.png": rgb,
        "rgba.png": rgba,
        "grey.png": rgb.convert("L"),
        "grey-alpha.png": rgba.convert("LA"),
        "palette.png": rgb.quantize(64),
        "bilevel.png": rgb.convert("1"),
        "16-bit.png": deep,
        "rgb.bmp": rgb,
        "grey.bmp": rgb.convert("L"),
        "palette.gif": rgb.quantize(64),
        "rgb.webp": rgb,
        "rgba.webp": rgba,
        "rgb.jpg": rgb,
        "grey.jpg": rgb.convert("L"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "turned.jpg": rgb,
    }
    noise = Image.fromarray(rng.integers(0, 256, (61, 83, 3), numpy.uint8))
    photo = Image.fromarray(smooth).resize((1600, 1201), Image.BICUBIC)
    small = [Image.fromarray(smooth[:h, :w]) for w, h in ((1, 1), (1, 9), (17, 1), (8, 8), (16, 16), (33, 31))]
    jpegs = {f"small-{i}.jpg": (image, {}) for i, image in enumerate(small)}
    for quality in (1, 30, 75, 100):
        for sampling in ("4:4:4", "4:2:2", "4:2:0"):
            for progressive in (False, True):
                name = f"q{quality}-{sampling.replace(':', '')}-{'p' if progressive else 'b'}"
                options = {"quality": quality, "subsampling": sampling, "progressive": progressive}
                jpegs[f"{name}.jpg"] = (noise, options)
                jpegs[f"{name}-smooth.jpg"] = (rgb, options)
    jpegs["large.jpg"] = (photo, {})
    jpegs["large-p.jpg"] = (photo, {"progressive": True})
    jpegs["restarts.jpg"] = (photo, {"restart_marker_blocks": 7})
    jpegs["rgb-kept.jpg"] = (noise, {"keep_rgb": True})
    jpegs["grey-noise.jpg"] = (noise.convert("L"), {"progressive": True})
    jpegs["cmyk-noise.jpg"] = (noise.convert("CMYK"), {"quality": 90})
    pixels = {}
    for name, (image, options) in jpegs.items():
        image.save(folder / name, **options)
        pixels[name] = torch.from_numpy(numpy.asarray(Image.open(folder / name).convert("RGB")).copy())
    for name, image in files.items():
        options = {"lossless": True} if name.endswith("webp") else {"quality": 95} if name.endswith("jpg") else {}
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        image.save(folder / name, **options)
        pixels[name] = torch.from_numpy(numpy.asarray(Image.open(folder / name).convert("RGB")).copy())
    torch.save(pixels, folder / "out.pth")


def png16(path, pixels):
    """Writes a PNG of 16 bits a channel, which Pillow reads and cannot write."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))


def webps(folder, images):
    """Writes images as WebP with loss: at every quality, of even and odd sizes, with transparency, and moving ones."""
    for name, image in images.items():
        for quality in (0, 30, 75, 100):
            for method in (0, 4, 6):
                image.save(folder / f"{name}-q{quality}-m{method}.webp", quality=quality, method=method)
        for width, height in ((1, 1), (1, 150), (200, 1), (2, 2), (7, 3), (16, 16), (17, 33)):
            image.crop((0, 0, width, height)).save(folder / f"{name}-{width}x{height}-lossy.webp")
    for quality in (0, 50, 100):
        images["alpha"].save(folder / f"alpha-a{quality}.webp", alpha_quality=quality)
    images["alpha"].save(folder / "alpha-exact.webp", exact=True)
    images["alpha"].save(folder / "alpha-exact-lossless.webp", exact=True, lossless=True)
    frames = [images["smooth"].rotate(angle) for angle in (90, 180)]
    images["smooth"].save(folder / "moving.webp", save_all=True, append_images=frames)
    images["alpha"].save(folder / "moving-alpha.webp", save_all=True, append_images=[images["alpha"].rotate(180)], lossless=True)


def photos(folder):
    """Writes photos as large as cameras give them and as odd as programs do, and the digest of what Pillow makes of each."""
    y, x = numpy.mgrid[0:6000, 0:8000]
    rng = numpy.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (150, 200, 3), numpy.uint8))
    large = coarse.resize((8000, 6000), Image.BICUBIC)
    large.save(folder / "large.jpg", quality=90)
    large.save(folder / "large-progressive.jpg", quality=85, progressive=True)
    large.save(folder / "large.png", compress_level=1)
    large.convert("CMYK").save(folder / "large-cmyk.jpg", quality=90)
    large.convert("L").save(folder / "large-grey.jpg", quality=80)
    large.quantize(200).save(folder / "large-palette.png", compress_level=1)
    for channels in (1, 2, 3, 4):
        deep = rng.integers(0, 65536, (97, 131, channels), numpy.uint16)
        png16(folder / f"deep-{channels}.png", deep)
        png16(folder / f"deep-{channels}-one.png", deep[:1, :1])
    gradient = numpy.stack([x[:2000, :3000] * 21, y[:2000, :3000] * 32, (x + y)[:2000, :3000] * 13], -1).astype(numpy.uint16)
    png16(folder / "deep-large.png", gradient)
    modes = {"1": coarse.convert("1"), "L": coarse.convert("L"), "P": coarse.quantize(16), "RGB": coarse, "CMYK": coarse.convert("CMYK")}
    modes["RGBA"] = Image.merge("RGBA", [*coarse.split(), coarse.convert("L")])
    modes["LA"] = modes["RGBA"].convert("LA")
    modes["PA"] = modes["RGBA"].quantize(32)
    takes = {
        "png": ("1", "L", "LA", "P", "PA", "RGB", "RGBA"),
        "jpg": ("L", "RGB", "CMYK"),
        "gif": ("1", "L", "P", "RGB"),
        "bmp": ("1", "L", "P", "RGB"),
        "webp": ("L", "RGB", "RGBA"),
    }
    for ending, names in takes.items():
        for name in names:
            for width, height in ((200, 150), (1, 1), (1, 150), (200, 1), (7, 3)):
                image = modes[name].crop((0, 0, width, height))
                image.save(folder / f"{name}-{width}x{height}.{ending}", **({"lossless": True} if ending == "webp" else {}))
    coarse.quantize(16).save(folder / "transparent.png", transparency=3)
    coarse.save(folder / "transparent-colour.png", transparency=coarse.getpixel((0, 0)))
    coarse.quantize(16).save(folder / "transparent.gif", transparency=3)
    coarse.save(folder / "interlaced.gif", interlace=True)
    webps(folder, {"coarse": modes["RGB"], "alpha": modes["RGBA"], "smooth": large.resize((301, 223), Image.BICUBIC)})
    large.save(folder / "large.webp", quality=80, method=0)
    Image.MAX_IMAGE_PIXELS = None
    seen = {}
    for path in sorted(folder.iterdir()):
        rgb = Image.open(path).convert("RGB")
        seen[path.name] = [*rgb.size, hashlib.sha256(rgb.tobytes()).hexdigest()]
    (folder / "out.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    commands = {f.__name__: f for f in (network, training, load, save, many, resize, preprocess, decode, photos)}
    commands[sys.argv[1]](pathlib.Path(sys.argv[2]))
