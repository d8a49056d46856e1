# Fits a line by gradient descent, and keeps what any training image may keep of Anneal's contract: see docs/custom-image.md.
import http.server, json, os, signal, threading, time

state_file = os.path.join(os.environ["ANNEAL_OUTPUT_DIR"], "state.json")
os.makedirs(os.path.dirname(state_file), exist_ok=True)
state = json.load(open(state_file)) if os.path.exists(state_file) else {"step": 0, "slope": 0.0}  # a retry goes on here

class Progress(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        body = {"epoch": state["step"] // 10, "epochs": 10, "step": state["step"], "steps": 100, "lastUpdateTime": now}
        self.send_response(200), self.end_headers(), self.wfile.write(json.dumps(body).encode())
threading.Thread(target=http.server.HTTPServer(("", 9090), Progress).serve_forever, daemon=True).start()

signal.signal(signal.SIGTERM, lambda *_: os._exit(143))  # what is to be kept is kept at each step
while state["step"] < 100:
    state["slope"] -= 0.01 * sum(2 * x * (state["slope"] * x - 3 * x) for x in range(1, 5)) / 4
    state["step"] += 1
    with open(state_file + ".next", "w") as file: json.dump(state, file)
    os.replace(state_file + ".next", state_file)  # whole or not at all: the pod may be killed at any moment
    time.sleep(float(os.environ.get("SECONDS_PER_STEP", "0.1")))
print("slope", round(state["slope"], 3))
