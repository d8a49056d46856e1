"""The fenced blocks of Markdown pages, and what their info strings say of running them.

    ```sh run                     is run
    ```sh run-for-10s             is run, and stopped after that time: it shows something until it is stopped
    ```sh not-run: REASON         is not, because
    <!-- run                      is run and not shown: what the page takes for granted
    -->

Renderers take the first word for the language and leave the rest alone.
"""

import dataclasses, pathlib, re, subprocess

COMMANDS = {"sh", "console"}
FENCE = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<body>.*?)^```$|^<!-- run\n(?P<hidden>.*?)^-->$", re.M | re.S)


@dataclasses.dataclass
class Block:
    page: str
    line: int
    language: str
    run: str  # run, run-for-Ns, or empty
    reason: str  # why it is not run
    body: str

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    def problem(self):
        """What its author has to mend."""
        if not self.language:
            return "the block names no language; write ```sh run, ```yaml, ```text"
        if self.language in COMMANDS and not self.run and not self.reason:
            return f"commands that no test runs; write ```{self.language} run, or ```{self.language} not-run: REASON"
        if self.language not in COMMANDS and (self.run or self.reason):
            return f"{self.language} is nothing to run"
        return None


def of(root, page):
    """The blocks of a page in order."""
    text = (root / page).read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["hidden"] is not None:
            yield Block(page, line, "sh", "run", "", found["hidden"])
            continue
        language, _, rest = found["info"].strip().partition(" ")
        reason = rest.removeprefix("not-run:").strip() if rest.startswith("not-run:") else ""
        run = rest if re.fullmatch(r"run(-for-\d+s)?", rest) else ""
        yield Block(page, line, language, run, reason, found["body"])


def pages(root):
    """The Markdown pages of the checkout."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=root, check=True, capture_output=True, text=True)
    return sorted(name for name in listed.stdout.split("\n") if name and pathlib.Path(root, name).is_file())
