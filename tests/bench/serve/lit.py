"""What is compared with: the same model behind LitServe. A module of its own, since its workers import what they run."""

import os
import sys

import litserve
import torch
from peers import load, transform
from PIL import Image
from starlette.requests import Request


class Classifier(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.model = load(os.environ["CHECKPOINT"]).to(memory_format=torch.channels_last)

    def decode_request(self, request: Request):
        return transform(Image.open(request["file"].file))

    def predict(self, x):
        with torch.inference_mode():
            return torch.softmax(self.model(x[None].contiguous(memory_format=torch.channels_last), None), 1)[0].tolist()

    def encode_response(self, shares):
        names = ["cat", "dog"]
        best = max(range(2), key=shares.__getitem__)
        return {"prediction": names[best], "confidence": shares[best], "probabilities": dict(zip(names, shares))}


if __name__ == "__main__":
    checkpoint, port = sys.argv[1:]
    os.environ["CHECKPOINT"] = checkpoint
    # A process for each core.
    server = litserve.LitServer(Classifier(), accelerator="cpu", devices=1, workers_per_device=os.cpu_count(), healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False)
