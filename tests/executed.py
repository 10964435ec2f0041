"""Checks notebooks that were run: `python tests/executed.py FOLDER`; .ci/run calls it.

Nothing was written to stderr, nothing warned, nothing is shown as a bare object, and the cells of
one notebook took less than a minute.
"""

import re
import sys
from datetime import datetime
from pathlib import Path

import nbformat

LONGEST = 60  # seconds
UNWANTED = re.compile(r"\w*Warning\b|<[\w.]+ object at 0x|^<Figure|\bTraceback\b", re.MULTILINE)


def main(folder):
    """Prints the seconds of every notebook and what is wrong; the number of faults."""
    files = sorted(Path(folder).glob("*.ipynb"))
    faults = 0 if files else 1
    for file in files:
        cells = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
        took, found = sum(map(seconds, cells)), [fault for cell in cells for fault in wrong(cell)]
        if took > LONGEST:
            found.append(f"took {took:.0f} s, expected at most {LONGEST}")
        sys.stdout.write(f"{file.name}: {took:.0f} s\n" + "".join(f"  {one}\n" for one in found))
        faults += len(found)
    return faults


def seconds(cell):
    """How long a cell ran, by the kernel's own messages."""
    times = cell.metadata["execution"]
    began, ended = (
        datetime.fromisoformat(times[f"{message}"])
        for message in ("iopub.execute_input", "shell.execute_reply")
    )
    return (ended - began).total_seconds()


def wrong(cell):
    """What a reader should not see in the outputs of a cell, each as a line."""
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"{cell.id}: {output.ename}"
        if output.get("name") == "stderr":
            yield f"{cell.id}: stderr: {output.text.strip()[:100]}"
        shown = output.get("text") or output.get("data", {}).get("text/plain", "")
        rich = {"text/html", "image/png", "application/vnd.plotly.v1+json"}
        if not rich & set(output.get("data", {})) and (bad := UNWANTED.search(shown)):
            yield f"{cell.id}: shows {bad[0]!r}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) and 1)
