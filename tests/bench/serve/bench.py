"""Runs the servers one after another, round after round, and prints a table and the line RESULT. `run` sets it up."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

SERVER, WORK, PHOTOS = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
ROUNDS = int(os.environ.get("ROUNDS", 3))
SECONDS = int(os.environ.get("SECONDS_EACH", 8))
CONCURRENCY = [1, 8, 32, 128]
PEERS = str(pathlib.Path(__file__).with_name("peers.py"))
CHECKPOINT = str(WORK / "model.pth")
TICK = os.sysconf("SC_CLK_TCK")
# Python finds its own libtorch; ours has fewer libraries.
PYTHON_ENV = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}


def python(*arguments):
    return subprocess.run([sys.executable, PEERS, *map(str, arguments)], env=PYTHON_ENV, check=True, capture_output=True, text=True).stdout


class Running:
    """A server, from its start until the end of the block."""

    def __init__(self, command, port, env):
        self.url = f"http://127.0.0.1:{port}"
        begun = time.monotonic()
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() - begun > 60:
                raise SystemExit(f"{command} did not become ready")
            time.sleep(0.01)
        self.ready_seconds = time.monotonic() - begun

    def ready(self):
        try:
            return urllib.request.urlopen(f"{self.url}/readyz", timeout=1).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def peak(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def ours(precision):
    command = [SERVER, "--checkpoint", CHECKPOINT, "--listen", "127.0.0.1:18000", "--precision", precision, "--shutdown-delay", "0s"]
    return Running(command, 18000, {**os.environ, "LOG_LEVEL": "warn"})


def fastapi():
    return Running([sys.executable, PEERS, "fastapi", CHECKPOINT, "18001"], 18001, PYTHON_ENV)


def measure(server, concurrency, seconds):
    images = [argument for photo in PHOTOS for argument in ("--image", photo)]
    before = server.cpu()
    command = [SERVER, "load", "--url", server.url, "--json", "--concurrency", str(concurrency), "--duration", f"{seconds}s", *images]
    load = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LOG_LEVEL": "error"}).stdout)
    load["cpu_ms"] = 1e3 * (server.cpu() - before) / max(load["predictions"], 1)
    return load


def median(values):
    return statistics.median(values)


def main():
    servers = {"ours float32": lambda: ours("float32"), "ours bfloat16": lambda: ours("bfloat16"), "FastAPI": fastapi}
    measured = {(name, c): [] for name in servers for c in CONCURRENCY}
    peaks, ready, bare = {name: 0 for name in servers}, [], {(2, 1): [], (1, 2): []}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        for shape in bare:
            bare[shape].append(tuple(map(float, python("forward", CHECKPOINT, *shape, SECONDS).split())))
        for name, start in servers.items():
            with start() as server:
                if name == "ours float32":
                    ready.append(server.ready_seconds)
                measure(server, 4, 1)
                for concurrency in CONCURRENCY:
                    measured[name, concurrency].append(measure(server, concurrency, SECONDS))
                peaks[name] = max(peaks[name], server.peak())
    rate, cpu = max((median(r for r, _ in runs), median(c for _, c in runs)) for runs in bare.values())
    print(f"bare forward pass: {rate:.1f} images/s, {1e3 * cpu:.2f} ms of CPU each\n")
    print("| server | c | requests/s | p50 ms | p99 ms | server CPU ms | client CPU ms | errors | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    figure = {}
    for (name, concurrency), runs in measured.items():
        of = {key: median(run[key] for run in runs) for key in ("rate", "p50_ms", "p99_ms", "cpu_ms", "client_cpu_ms")}
        figure[name, concurrency] = of
        errors = sum(run["errors"] for run in runs)
        print(f"| {name} | {concurrency} | {of['rate']:.1f} | {of['p50_ms']:.1f} | {of['p99_ms']:.1f} | {of['cpu_ms']:.2f} | {of['client_cpu_ms']:.2f} | {errors} | {peaks[name]:.0f} |")
    mine, theirs = figure["ours float32", 32], figure["FastAPI", 32]
    result = {
        "bench": "serve",
        "cpu_ratio_vs_forward": mine["cpu_ms"] / (1e3 * cpu),
        "rate_ratio_vs_forward": mine["rate"] / rate,
        "cpu_ratio_vs_fastapi": mine["cpu_ms"] / theirs["cpu_ms"],
        "p99_ratio_vs_fastapi": mine["p99_ms"] / theirs["p99_ms"],
        "bf16_rate_ratio": figure["ours bfloat16", 32]["rate"] / mine["rate"],
        "peak_rss_mb": peaks["ours float32"],
        "ready_seconds": median(ready),
    }
    print("\nRESULT", json.dumps({key: value if isinstance(value, str) else round(value, 3) for key, value in result.items()}))


main()
