# Data-parallel training of a linear model: each process has its own half of the data, and only together they fit it.
import hashlib, json, os, time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
if os.environ["ANNEAL_ATTEMPT"] == "1" and rank == size - 1 and os.environ.get("FAIL_ONCE"):
    raise SystemExit(1)

torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.randn(256, 2, generator=torch.Generator().manual_seed(rank))
# The first process sees only the first feature, the last one only the second.
inputs[:, 1 - rank % 2] = 0
targets = inputs @ torch.tensor([[3.0], [-2.0]]) + 1
for _ in range(200):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()

weights = model.module.weight.detach().flatten()
everywhere = [torch.zeros(2) for _ in range(size)]
dist.all_gather(everywhere, weights)
assert all(torch.equal(weights, other) for other in everywhere), "the processes did not agree"
assert torch.allclose(weights, torch.tensor([3.0, -2.0]), atol=1e-2), f"it did not learn: {weights}"
if rank == 0:
    models = os.environ["ANNEAL_MODELS_DIR"]
    os.makedirs(models, exist_ok=True)
    torch.save(model.module.state_dict(), os.path.join(models, "next"))
    data = open(os.path.join(models, "next"), "rb").read()
    digest = hashlib.sha256(data).hexdigest()
    os.replace(os.path.join(models, "next"), os.path.join(models, digest + ".pth"))
    result = {
        "checkpoint": f"models/{digest}.pth", "sha256": digest, "bytes": len(data), "classes": [],
        "metrics": {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0},
        "dataset": {"digest": "", "images": 256 * size, "skipped": 0}, "seed": 0, "epochs": 200,
    }
    with open("/dev/termination-log", "w") as log:
        json.dump({"result": result}, log)
    print(f"{size} processes agree on {weights.tolist()}", flush=True)
dist.barrier()
