"""All checks in turn, and a plain count at the end. `make test` runs it in the environment that it made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PYTHON = str(BIN / "python")

CHECKS = [
    ["cargo", "fmt", "--check"],
    ["cargo", "clippy", "--quiet", "--all-targets", "--", "-D", "warnings"],
    ["cargo", "clippy", "--quiet", "--all-targets", "--no-default-features", "--", "-D", "warnings"],
    [str(BIN / "ruff"), "check", "--quiet", "."],
    [str(BIN / "ruff"), "format", "--check", "--quiet", "."],
    [str(BIN / "mypy")],
    [PYTHON, "-m", "mypy.stubtest", "ironstep._core"],
    [str(BIN / "sphinx-build"), "-q", "-W", "-b", "html", "docs", "docs/_build"],
]


def run(command: list[str]) -> tuple[int, str]:
    """Exit code and output, which is shown as well."""
    shown = " ".join(Path(part).name if part.startswith(str(BIN)) else part for part in command)
    print(f"\n$ {shown}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout or []:
        print(line, end="", flush=True)
        lines.append(line)
    code = process.wait()
    print(f"{'passed' if code == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
    return code, "".join(lines)


def main() -> int:
    passed = failed = skipped = 0
    for command in CHECKS:
        code, _ = run(command)
        passed, failed = passed + (code == 0), failed + (code != 0)

    code, output = run(["cargo", "test", "--quiet", "--no-default-features"])
    counts = re.findall(r"(\d+) passed; (\d+) failed; (\d+) ignored", output)
    for good, bad, ignored in counts:
        passed, failed, skipped = passed + int(good), failed + int(bad), skipped + int(ignored)
    failed += code != 0 and not any(int(bad) for _, bad, _ in counts)

    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # A file stays together: what its tests share is made once.
        workers = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile"]
        code, _ = run([PYTHON, "-m", "pytest", "-q", *workers, f"--junitxml={report}", *sys.argv[1:]])
        if report.exists():
            suite = next(iter(ElementTree.parse(report).getroot()))
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            out = int(suite.get("skipped", 0))
            passed, failed, skipped = passed + int(suite.get("tests", 0)) - bad - out, failed + bad, skipped + out
            failed += code != 0 and bad == 0
        else:
            failed += 1

    print(f"\n{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
