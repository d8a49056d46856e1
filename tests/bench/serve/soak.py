"""Loads a server for a long time and looks whether its memory grows. `scripts/soak server` sets it up."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

SERVER, CHECKPOINT, SECONDS = sys.argv[1], sys.argv[2], int(sys.argv[3])
INTERVAL = 5
# Allocators settle during the first requests.
SETTLING = min(120, SECONDS // 4)
# What is no leak within such a time: pages that come and go.
NOISE_MB = 4


def slope(points):
    """Least squares: megabytes per second, and the standard error of that."""
    n = len(points)
    mean_x, mean_y = (sum(column) / n for column in zip(*points))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rate = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - rate * (x - mean_x)) ** 2 for x, y in points)
    return rate, (rest / max(n - 2, 1) / spread) ** 0.5


def resident(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def main():
    with tempfile.TemporaryDirectory() as folder:
        port_file = pathlib.Path(folder, "port")
        environment = {**os.environ, "LOG_LEVEL": "error"}
        server = subprocess.Popen([SERVER, "--checkpoint", CHECKPOINT, "--listen", "127.0.0.1:0", "--port-file", port_file, "--shutdown-delay", "0s"], env=environment)
        load = None
        try:
            url = wait(server, port_file)
            # Connections that are kept and such that are not, calm and beyond what the server can bear.
            command = [SERVER, "load", "--url", url, "--json", "--duration", f"{SECONDS}s"]
            load = [
                subprocess.Popen([*command, *how], env=environment, stdout=subprocess.PIPE, text=True)
                for how in (["--concurrency", "4"], ["--concurrency", "4", "--new-connections"], ["--arrivals", "100"])
            ]
            points, begun = [], time.monotonic()
            while any(one.poll() is None for one in load):
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                elapsed = time.monotonic() - begun
                if SETTLING <= elapsed < SECONDS:
                    points.append((elapsed, resident(server)))
                if sys.stderr.isatty():
                    print(f"\r{elapsed:5.0f} of {SECONDS} s, {resident(server):.1f} MB ", end="", file=sys.stderr)
                time.sleep(INTERVAL)
            told = [json.loads(one.communicate()[0]) for one in load]
        finally:
            for process in [server, *(load or [])]:
                process.terminate()
                process.wait()
    rate, error = slope(points)
    span = points[-1][0] - points[0][0]
    result = {
        "bench": "soak-server", "seconds": SECONDS, "predictions": sum(one["predictions"] for one in told),
        "refused": sum(one["refused"] for one in told), "errors": sum(one["errors"] for one in told),
        "memory_mb": round(points[-1][1], 1), "growth_mb": round(rate * span, 2), "growth_error_mb": round(error * span, 2),
    }
    print("RESULT", json.dumps(result))
    unexpected = {text: count for one in told for text, count in one["error_texts"].items() if "503" not in text}
    if unexpected:
        raise SystemExit(f"these are no refusals: {unexpected}")
    if rate * span > NOISE_MB + 3 * error * span:
        raise SystemExit(f"the memory grew by {rate * span:.1f} MB in {span:.0f} s")


def wait(server, port_file):
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            url = f"http://127.0.0.1:{port_file.read_text().strip()}"
            if urllib.request.urlopen(f"{url}/readyz", timeout=5).status == 200:
                return url
        except (OSError, ValueError):
            time.sleep(0.05)
    raise SystemExit("the server did not become ready")


main()
