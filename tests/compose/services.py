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
until = time.monotonic() + PATIENCE
query = "http://prometheus:9090/api/v1/query?" + urllib.parse.urlencode({"query": 'predictions_total{model_deployment="cats-vs-dogs"}'})
while not get(query)["data"]["result"]:
    assert time.monotonic() < until, "Prometheus has read nothing from the server"
    time.sleep(1)
print("ok: Prometheus reads the server's metrics")
assert any(group["rules"] for group in get("http://prometheus:9090/api/v1/rules")["data"]["groups"]), "there are no alerts"
print("ok: Prometheus has the alerts")
print(f"{len(running) + 5} passed, 0 failed")
