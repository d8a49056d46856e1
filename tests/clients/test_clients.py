"""What real clients see of a server with a model that the trainer made of drawn photos. `run` sets it up."""

import contextlib
import http.client
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

import numpy
import tritonclient.http as triton
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BINARIES, PAGES = map(pathlib.Path, sys.argv[1:3])
SIZE = 48
PATIENCE = 60


def setUpModule():
    global work, photos, server, port
    work = tempfile.TemporaryDirectory()
    folder = pathlib.Path(work.name)
    config = {
        "model": {"inputSize": SIZE},
        "dataset": {"uri": f"synthetic://?images=400&size={SIZE}"},
        "hyperparameters": {"epochs": 3, "batchSize": 16},
    }
    (folder / "run.json").write_text(json.dumps(config))
    quiet = {**os.environ, "LOG_LEVEL": "warn"}
    trained = subprocess.run(
        [BINARIES / "anneal-trainer", "train", "--name", "clients", "--config", folder / "run.json", "--output", folder / "out"],
        env=quiet, capture_output=True, text=True,
    )
    if trained.returncode:
        raise SystemExit(f"the training failed: {trained.stdout}{trained.stderr}")
    [checkpoint] = (folder / "out" / "models").glob("*.pth")
    photos = {name: draw(name, folder / f"{name}.png") for name in ("cat", "dog")}
    (folder / "notes.png").write_text("This is no image.")
    server = subprocess.Popen(
        [BINARIES / "anneal-server", "--checkpoint", checkpoint, "--listen", "127.0.0.1:0", "--port-file", folder / "port", "--shutdown-delay", "0s"],
        env=quiet,
    )
    unittest.addModuleCleanup(stop)
    port = int(until("the server listens", lambda: (folder / "port").exists() and (folder / "port").read_text()))
    until("the server is ready", lambda: get("/readyz")[0] == 200)


def stop():
    server.terminate()
    server.wait(PATIENCE)
    work.cleanup()


def draw(name, path):
    """A photo of the kind that the model was trained on."""
    command = [BINARIES / "anneal-trainer", "synthesize", "--stdout", "--class", name, "--size", "320", "--seed", "5"]
    path.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return path


def until(what, look):
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if found := look():
                return found
        except OSError:
            pass
        if time.monotonic() > end or server.poll() is not None:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.05)


def exchange(*request):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request(*request)
        answer = connection.getresponse()
        return answer.status, answer.read()


def get(path):
    return exchange("GET", path)


def predict(photo):
    """What POST /predict says about a file."""
    status, text = exchange("POST", "/predict", photo.read_bytes(), {"Content-Type": "image/png"})
    assert status == 200, text
    return json.loads(text)


class TritonClient(unittest.TestCase):
    def setUp(self):
        self.client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        self.addCleanup(self.client.close)
        self.name = json.loads(get("/model/info")[1])["model_name"]

    def test_it_finds_the_server_and_the_model_ready(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready(self.name))
        version = self.client.get_model_metadata(self.name)["versions"][0]
        self.assertTrue(self.client.is_model_ready(self.name, version))
        self.assertFalse(self.client.is_model_ready("another"))
        metadata = self.client.get_model_metadata(self.name)
        self.assertEqual({tensor["name"] for tensor in metadata["inputs"]}, {"image", "input"})

    def ask(self, name, array, datatype, binary):
        tensor = triton.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        wanted = [triton.InferRequestedOutput("probabilities", binary_data=binary)]
        return self.client.infer(self.name, [tensor], outputs=wanted).as_numpy("probabilities")

    def test_tensors_get_the_same_answers_as_files_in_json_and_in_binary(self):
        classes = json.loads(get("/model/info")[1])["classes"]
        wanted = numpy.array([[predict(photo)["probabilities"][name] for name in classes] for photo in photos.values()])
        resize = lambda photo: numpy.asarray(Image.open(photo).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR))
        pixels = numpy.stack([resize(photo) for photo in photos.values()])
        mean, std = numpy.array([0.485, 0.456, 0.406]), numpy.array([0.229, 0.224, 0.225])
        values = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(numpy.float32)
        for binary in (False, True):
            for name, array, datatype in (("image", pixels, "UINT8"), ("input", values, "FP32")):
                with self.subTest(name=name, binary=binary):
                    numpy.testing.assert_allclose(self.ask(name, array, datatype, binary), wanted, atol=1e-4)

    def test_a_tensor_of_another_shape_is_refused_with_a_sentence(self):
        with self.assertRaisesRegex(triton.InferenceServerException, str(SIZE)):
            self.ask("image", numpy.zeros((1, 8, 8, 3), numpy.uint8), "UINT8", True)


class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        options = webdriver.ChromeOptions()
        # Chromium's own sandbox wants rights that a container does not give.
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=900,900"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        cls.browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        cls.addClassCleanup(cls.browser.quit)
        PAGES.mkdir(parents=True, exist_ok=True)

    def open(self, path):
        # What earlier pages complained of is theirs.
        self.browser.get_log("browser")
        self.browser.get(f"http://127.0.0.1:{port}{path}")

    def shown(self, text):
        try:
            WebDriverWait(self.browser, PATIENCE).until(lambda browser: text in browser.find_element(By.TAG_NAME, "body").text)
        except WebDriverException:
            self.fail(f"{text!r} is not on the page:\n{self.browser.find_element(By.TAG_NAME, 'body').text}")

    def photograph(self, name):
        self.browser.save_screenshot(str(PAGES / f"{name}.png"))

    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def test_a_person_who_chooses_a_photo_sees_what_is_on_it(self):
        for name, photo in photos.items():
            answer = predict(photo)
            self.open("/")
            self.browser.find_element(By.ID, "file").send_keys(str(photo))
            self.shown(f"{answer['prediction']} ({100 * answer['confidence']:.1f} %)")
            bars = self.browser.find_elements(By.CSS_SELECTOR, "#bars meter")
            values = {bar.get_attribute("aria-label"): float(bar.get_attribute("value")) for bar in bars}
            self.assertEqual(values.keys(), answer["probabilities"].keys())
            for label, share in answer["probabilities"].items():
                self.assertAlmostEqual(values[label], share, places=4)
            width = self.browser.execute_script("return document.getElementById('photo').naturalWidth")
            self.assertGreater(width, 0, "the photo itself is shown")
            self.photograph(f"answer-{name}")
        self.assertEqual(self.complaints(), [])

    def test_a_file_that_is_no_image_is_explained(self):
        self.open("/")
        self.browser.find_element(By.ID, "file").send_keys(str(pathlib.Path(work.name) / "notes.png"))
        self.shown("cannot be classified")
        self.assertFalse(self.browser.find_element(By.ID, "photo").is_displayed(), "no broken picture")
        self.photograph("refusal")

    def test_every_page_loads_nothing_from_elsewhere_and_complains_of_nothing(self):
        for path in ("/", "/docs", "/redoc"):
            with self.subTest(path):
                self.open(path)
                self.assertTrue(self.browser.title)
                loaded = self.browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
                self.assertEqual([url for url in loaded if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))], [])
                self.assertEqual(self.complaints(), [])
                self.photograph(path.strip("/") or "page")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
