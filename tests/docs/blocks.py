"""The fenced blocks of Markdown pages, and what their info strings say of running and checking them.

    ```sh run                         is run
    ```sh run-for-10s                 is run, and stopped after that time: it shows something until it is stopped
    ```sh run-on-gateway              is run where there is a Gateway; run-on-gateway-for-10s
    ```sh not-run: REASON             is not, because
    <!-- run                          is run and not shown: what the page takes for granted; <!-- run-on-gateway
    -->
    ```yaml                           is a manifest, which the API server must take
    ```yaml on-gateway                the same where there is a Gateway
    ```yaml of TrainingRun.spec       is a part of such an object; `each of`: every line is
    ```yaml values                    is a file of values, with which the chart must render

Renderers take the first word for the language and leave the rest alone. Whole commands of kubectl in prose and tables are
looked at, too.
"""

import dataclasses, pathlib, re, shlex, subprocess, textwrap

COMMANDS = {"sh", "console"}
RUN = re.compile(r"run(?P<gateway>-on-gateway)?(?:-for-(?P<limit>\d+)s)?")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)```$"
    r"|^<!-- (?P<how>run(?:-on-gateway)?)\n(?P<hidden>.*?)^-->$", re.M | re.S)
PART = re.compile(r"(?P<each>each )?of (?P<path>\w+(?:\.\w+)+)")
# What a part needs around it, by its place: the least that the API server takes.
AROUND = {
    "TrainingRun.spec": {"dataset": "{uri: 'synthetic://'}", "output": "{claimName: models}"},
    "ModelDeployment.spec": {"model": "{trainingRunRef: {name: cats-vs-dogs}}"},
    "ModelDeployment.spec.strategy": {"type": "Canary"},
    "ModelDeployment.spec.strategy.canary": {"parentRefs": "[{name: edge}]", "steps": "[{setWeight: 10, pauseSeconds: 60}]"},
}
# Words after the verb that make a command whole; with fewer it is only spoken of.
WHOLE = {"get": 1, "top": 1, "explain": 1, "cordon": 1, "describe": 2, "logs": 2, "wait": 2, "apply": 2, "delete": 2, "create": 3, "annotate": 3, "patch": 3}
# Names that readers fill in; the test has objects for them. Most examples are about one deployment.
NAMES = ("NAMESPACE", "NAME", "NAME-ATTEMPT", "NAME-REVISION", "RUN-N", "NODE", "KIND", "cats")
# Those that change something, and how they are tried without.
DRY = {verb: "--dry-run=server" for verb in ("cordon", "apply", "delete", "annotate", "patch")} | {"create": "--dry-run=client"}


@dataclasses.dataclass
class Block:
    page: str
    line: int
    language: str
    rest: str  # of the info string
    body: str

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    @property
    def run(self):
        """How it is run, if it is."""
        return RUN.fullmatch(self.rest) if self.language in COMMANDS else None

    @property
    def reason(self):
        """Why it is not run."""
        return self.rest.removeprefix("not-run:").strip() if self.rest.startswith("not-run:") else ""

    @property
    def is_on_gateway(self):
        return self.rest == "on-gateway" or bool(self.run and self.run["gateway"])

    def manifests(self):
        """The objects that it holds or is a part of, as text."""
        if not (part := PART.fullmatch(self.rest)):
            return [renamed(self.body)]
        kind, *path = part["path"].split(".")
        return [whole(kind, [*path], text) for text in (self.body.splitlines() if part["each"] else [self.body]) if text.strip()]

    def problem(self):
        """What its author has to mend."""
        if not self.language:
            return "the block names no language; write ```sh run, ```yaml, ```text"
        if self.language in COMMANDS:
            if self.run or self.reason:
                return None
            return f"commands that no test runs; write ```{self.language} run, or ```{self.language} not-run: REASON"
        if self.language != "yaml":
            return f"{self.language} is nothing to run" if self.rest else None
        if self.rest == "values" or PART.fullmatch(self.rest):
            return None
        if self.rest not in ("", "on-gateway"):
            return f"what is {self.rest}? write ```yaml, or ```yaml of TrainingRun.spec"
        return None if re.search(r"^kind:", self.body, re.M) else "no manifest; write ```yaml of KIND.spec where it is a part of one"


def filled(text):
    """With a digest in the place of what is left out."""
    return text.replace("…", "a" * 64)


def renamed(manifest):
    """The manifest as one that is not there yet, of no namespace."""
    manifest = re.sub(r"(metadata:\s*\{?\s*name: )[\w-]+", r"\g<1>not-yet-there", filled(manifest), count=1)
    return re.sub(r",\s*namespace: [\w-]+", "", manifest, count=1)


def whole(kind, path, text):
    """An object around one of its parts."""
    text = filled(textwrap.dedent(text))
    while path:
        around = AROUND.get(".".join([kind, *path]), {})
        missing = "".join(f"{key}: {value}\n" for key, value in around.items() if not re.search(rf"^{key}:", text, re.M))
        text = f"{path.pop()}:\n" + textwrap.indent(missing + text, "  ")
    return f"apiVersion: anneal.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: not-yet-there}}\n{text}"


@dataclasses.dataclass
class Inline:
    """A whole command in prose or a table."""

    place: str
    text: str

    def command(self, stands_for):
        """What is run for it: names of the test in the place of those that the reader fills in, nothing that never ends, and
        nothing that changes anything."""
        text = re.sub(r" (--watch|-w)\b", "", self.text)
        text = re.sub(r"--from-file=(\S+)", r"--from-file=\1=/dev/null", text)
        for name in sorted(stands_for, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-]){name}(?![\w-])", stands_for[name], text)
        return f"{text} {DRY.get(verb(self.text)[0], '')}".strip()

    def problem(self):
        """What its author has to mend."""
        unknown = re.findall(r"(?<![\w-])[A-Z]{2,}\b", self.command(dict.fromkeys(NAMES, "x")))
        return f"no test knows what stands for {unknown[0]}; there are {', '.join(NAMES)}" if unknown else None


def verb(command):
    """The verb of a command of kubectl, and what follows it."""
    words = shlex.split(command)[1:]
    while words[:1] == ["-n"]:
        words = words[2:]
    return (words[0], words[1:]) if words else ("", [])


def inline(root, page):
    """The whole commands of a page outside of its blocks."""
    text = FENCE.sub(lambda found: "\n" * found[0].count("\n"), (root / page).read_text())
    for found in re.finditer(r"`(kubectl [^`\n]+)`", text):
        name, rest = verb(found[1])
        if len(rest) >= WHOLE.get(name, len(rest) + 1):
            yield Inline(f"{page}:{text.count(chr(10), 0, found.start()) + 1}", found[1])


def of(root, page):
    """The blocks of a page in order."""
    text = (root / page).read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["hidden"] is not None:
            yield Block(page, line, "sh", found["how"], found["hidden"])
            continue
        language, _, rest = found["info"].strip().partition(" ")
        yield Block(page, line, language, rest, re.sub(rf"^{found['indent']}", "", found["body"], flags=re.M))


def pages(root):
    """The Markdown pages of the checkout."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=root, check=True, capture_output=True, text=True)
    return sorted(name for name in listed.stdout.split("\n") if name and pathlib.Path(root, name).is_file())
