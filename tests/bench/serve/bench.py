"""Runs the servers one after another, round after round, and prints tables and the line RESULT. `run` sets it up."""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

SERVER, WORK, PHOTOS = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
ROUNDS = int(os.environ.get("ROUNDS", 3))
OVERLOAD = int(os.environ.get("OVERLOAD_SECONDS", 60))
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

    def __init__(self, command, port, env, before=None):
        self.url = f"http://127.0.0.1:{port}"
        begun = time.monotonic()
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=before)
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

    def processes(self):
        """The server's process and its descendants."""
        found, waiting = [], [self.process.pid]
        while waiting:
            found.append(pid := waiting.pop())
            for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
        return found

    def cpu(self):
        stats = [pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in self.processes()]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / TICK

    def memory(self, key):
        """Megabytes by a key of /proc/PID/status, all processes together."""
        texts = [pathlib.Path(f"/proc/{pid}/status").read_text() for pid in self.processes()]
        return sum(int(text.split(f"{key}:")[1].split()[0]) for text in texts) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        # What it started ends with it.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def ours(precision, before=None, decode="exact"):
    command = [SERVER, "--checkpoint", CHECKPOINT, "--listen", "127.0.0.1:18000", "--precision", precision, "--decode", decode, "--shutdown-delay", "0s"]
    return Running(command, 18000, {**os.environ, "LOG_LEVEL": "warn"}, before)


def fastapi():
    return Running([sys.executable, PEERS, "fastapi", CHECKPOINT, "18001"], 18001, PYTHON_ENV)


def litserve():
    return Running([sys.executable, str(pathlib.Path(PEERS).with_name("lit.py")), CHECKPOINT, "18002"], 18002, PYTHON_ENV)


def measure(server, seconds, *how):
    images = [argument for photo in PHOTOS for argument in ("--image", photo)]
    before = server.cpu()
    command = [SERVER, "load", "--url", server.url, "--json", "--duration", f"{seconds}s", *map(str, how), *images]
    load = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LOG_LEVEL": "error"}).stdout)
    load["cpu_ms"] = 1e3 * (server.cpu() - before) / max(load["predictions"], 1)
    return load


def asked(server, photo):
    """The probability of the second class, as the server tells it."""
    request = urllib.request.Request(f"{server.url}/predict", pathlib.Path(photo).read_bytes(), {"Content-Type": "image/jpeg"})
    return json.load(urllib.request.urlopen(request, timeout=30))["probabilities"]["dog"]


def answers():
    """Every photo answered by PyTorch and by ours: how far the answers are apart."""
    lines = python("probabilities", CHECKPOINT, *PHOTOS).splitlines()
    wanted = {photo: float(share) for photo, share in (line.rsplit(" ", 1) for line in lines)}
    print(f"answers of PyTorch to {len(wanted)} photos lie between {min(wanted.values()):.3f} and {max(wanted.values()):.3f}")
    # What a scaled decode does to a probability depends on the photo: only the class is held against it.
    for precision, decode, tolerance, unsure in (("float32", "exact", 1e-4, 0), ("bfloat16", "exact", 2e-2, 0.05), ("float32", "scaled", 1, 0.05)):
        with ours(precision, decode=decode) as server:
            given = {photo: asked(server, photo) for photo in wanted}
        furthest = max(abs(given[photo] - share) for photo, share in wanted.items())
        others = [photo for photo, share in wanted.items() if (share > 0.5) != (given[photo] > 0.5) and abs(share - 0.5) > unsure]
        print(f"{precision}, {decode} decode: at most {furthest:.1e} apart, another class for {len(others)}")
        if furthest > tolerance or others:
            raise SystemExit(f"{precision} answers after {decode} decode are not PyTorch's: {furthest} apart, another class for {others}")


def overload(capacity):
    """Three times as many requests as the server can answer, from callers that do not wait for one another."""
    with ours("float32") as server:
        measure(server, 2, "--concurrency", 8)
        measure(server, 5, "--arrivals", round(3 * capacity))
        before = server.memory("VmRSS")
        load = measure(server, OVERLOAD, "--arrivals", round(3 * capacity))
        after = server.memory("VmRSS")
    print(f"\nthree times that rate for {OVERLOAD} s: {load['predictions']} answered, {load['refused']} refused (p99 {load['refused_p99_ms']} ms), {load['errors']} errors {load['error_texts']}, memory {before:.0f} -> {after:.0f} MB")
    return load["predictions"] / OVERLOAD / capacity


class Quota:
    """A cgroup with a share of the processors, of version 2 or 1."""

    PERIOD = 100_000

    def __init__(self, cpus):
        two = pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists()
        self.folder = pathlib.Path("/sys/fs/cgroup" if two else "/sys/fs/cgroup/cpu") / "anneal-bench-serve"
        self.folder.mkdir(exist_ok=True)
        if two:
            (self.folder / "cpu.max").write_text(f"{round(cpus * self.PERIOD)} {self.PERIOD}")
        else:
            (self.folder / "cpu.cfs_quota_us").write_text(str(round(cpus * self.PERIOD)))

    def enter(self):
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def throttled(self):
        """Periods in which the quota was used up, and all periods."""
        stat = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        return int(stat["nr_throttled"]), int(stat["nr_periods"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.folder.rmdir()


def quotas():
    print("\n| CPU quota | requests/s | p99 ms | periods throttled |")
    print("|---|---|---|---|")
    for cpus in (0.5, 1, 2):
        try:
            quota = Quota(cpus)
        except OSError as error:
            print(f"quotas cannot be set here: {error}")
            return
        with quota, ours("float32", quota.enter) as server:
            measure(server, 2, "--concurrency", 8)
            load = measure(server, SECONDS, "--concurrency", 8)
            throttled, periods = quota.throttled()
        print(f"| {cpus} | {load['rate']:.1f} | {load['p99_ms']:.0f} | {throttled} of {periods} |")


def median(values):
    return statistics.median(values)


def main():
    servers = {"ours float32": lambda: ours("float32"), "ours bfloat16": lambda: ours("bfloat16"), "FastAPI": fastapi, "LitServe": litserve}
    measured = {(name, c): [] for name in servers for c in CONCURRENCY}
    peaks, ready, bare = {name: 0 for name in servers}, [], {(2, 1): [], (1, 2): []}
    answers()
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        for shape in bare:
            bare[shape].append(tuple(map(float, python("forward", CHECKPOINT, *shape, SECONDS).split())))
        for name, start in servers.items():
            with start() as server:
                if name == "ours float32":
                    ready.append(server.ready_seconds)
                measure(server, 1, "--concurrency", 4)
                for concurrency in CONCURRENCY:
                    measured[name, concurrency].append(measure(server, SECONDS, "--concurrency", concurrency))
                peaks[name] = max(peaks[name], server.memory("VmHWM"))
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
    goodput = overload(figure["ours float32", 32]["rate"])
    quotas()
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
        "overload_goodput": goodput,
    }
    print("\nRESULT", json.dumps({key: value if isinstance(value, str) else round(value, 3) for key, value in result.items()}))


main()
