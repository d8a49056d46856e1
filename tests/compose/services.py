"""Runs the services of a checkout's compose.yaml in this root file system, and asks them. Called by tests/compose/run."""

import json, os, pathlib, re, shutil, subprocess, sys, time, urllib.parse, urllib.request

import yaml

PATIENCE = 180  # seconds until a service is healthy
# What the images of others run where the file gives no command.
DEFAULT = {"prometheus": ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]}
# The programs of our images, which are their entry points.
ENTRY = {"server": ["anneal-server"], "trainer": ["anneal-trainer"]}

checkout = pathlib.Path(sys.argv[1])
tools = pathlib.Path(os.environ["ANNEAL_TOOLS"])


def substituted(text):
    """As the specification has it: ${NAME:-default}."""
    while (changed := re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", text)) != text:
        text = changed
    return text


def prepare(services):
    """Folders for volumes, files where the services look for them, and names that lead here."""
    for service in services.values():
        for source, target, *_ in (volume.split(":") for volume in service.get("volumes", [])):
            if not source.startswith("."):
                os.makedirs(target, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(checkout / source, target)
    with open("/etc/hosts", "a") as hosts:
        hosts.write("127.0.0.1 localhost " + " ".join(services) + "\n")


def start(name, service):
    command = ENTRY.get(name, []) + service.get("command", DEFAULT.get(name, []))
    path = f"{tools}/venv/bin:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": "/tmp", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""), **service.get("environment", {})}
    return subprocess.Popen(command, env=environment, cwd="/tmp", stdout=open(f"/tmp/{name}.log", "w"), stderr=subprocess.STDOUT), environment


def healthy(name, service, process, environment):
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD", f"{name}: the health check is {kind}"
    until = time.monotonic() + PATIENCE
    while subprocess.run(command, env=environment, capture_output=True).returncode != 0:
        assert process.poll() is None, f"{name} ended: {pathlib.Path(f'/tmp/{name}.log').read_text()[-2000:]}"
        assert time.monotonic() < until, f"{name} does not become healthy: {pathlib.Path(f'/tmp/{name}.log').read_text()[-2000:]}"
        time.sleep(1)
    print(f"ok: {name} is healthy by its own check", flush=True)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


services = yaml.safe_load(substituted((checkout / "compose.yaml").read_text()))["services"]
prepare(services)
trainer, _ = start("trainer", services["trainer"])
assert trainer.wait(600) == 0, pathlib.Path("/tmp/trainer.log").read_text()[-2000:]
print("ok: the trainer trains into the volume", flush=True)

running = {name: start(name, service) for name, service in services.items() if not service.get("profiles")}
for name, (process, environment) in running.items():
    healthy(name, services[name], process, environment)
assert get("http://server:8000/health")["model_loaded"], "the server has no model"
print("ok: the server has loaded what the trainer wrote")
experiments = urllib.request.Request(
    "http://mlflow:5000/api/2.0/mlflow/experiments/search", b'{"max_results": 1}', {"Content-Type": "application/json"})
assert json.load(urllib.request.urlopen(experiments, timeout=30))["experiments"], "MLflow has no experiment"
print("ok: MLflow answers under its name")
prometheus = "http://prometheus:9090/api/v1/"


def asked(query):
    return get(prometheus + "query?" + urllib.parse.urlencode({"query": query}))["data"]["result"]


def wait(what, look):
    until = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(1)


wait("Prometheus reads the server's metrics", lambda: asked('anneal_model_info{model_deployment="cats-vs-dogs"}'))
print("ok: Prometheus reads the server's metrics")
for name, (_, environment) in running.items():
    assert subprocess.run(services[name]["healthcheck"]["test"][1:], env=environment, capture_output=True).returncode == 0, name
with urllib.request.urlopen("http://server:8000/metrics", timeout=10) as answer:
    counted = [line for line in answer.read().decode().splitlines() if re.match(r"predictions_total\{.*\} [1-9]", line)]
assert not counted, f"nobody asked for a prediction but the health check: {counted}"
print("ok: health checks are no predictions")
groups = get(prometheus + "rules")["data"]["groups"]
assert any(group["rules"] for group in groups), "there are no alerts"
wait("every alert is evaluated", lambda: all(rule["lastEvaluation"] > "0002" for group in get(prometheus + "rules")["data"]["groups"] for rule in group["rules"]))
wait("no alert fires or is about to where all is well", lambda: not get(prometheus + "alerts")["data"]["alerts"])
print("ok: Prometheus has the alerts, and none of them fires or is about to")
print(f"{len(running) + 6} passed, 0 failed")
