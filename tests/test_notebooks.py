"""Notebooks are stored clean and alike, and are written so that any BLOOM runs in them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
SERIES = (
    "00_tour",
    "01_attention_live",
    "02_alibi",
    "03_head_masks_and_pruning",
    "04_generation_and_the_cache",
    "05_lens_and_attribution",
    "06_probing",
    "07_patching_a_circuit",
    "08_phase_change",
    "09_big_models",
    "10_task_heads",
)
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
LOAD = 'model = bl.load("demo")  # or "bigscience/bloom-560m"'
HISTORY = "08_phase_change"  # shows a training that only the packaged model has
LINES = {"cell": 15, "def": 5}
SOURCES = ("arxiv.org", "aclanthology.org", "transformer-circuits.pub", "openreview.net", "doi.org")
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){0,3}(-[0-9a-f]{12})?")  # nbformat's own
SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SOURCE = re.compile(r"\]\(https://(?:www\.)?([^/)]+)[^)]*\)")
# by hand: L2H7, "blocks.2.attn...", [(1, 0)], [1, 0] of patterns
BY_HAND = re.compile(
    r"\bL\d+H\d+|blocks\.\d|blocks\[[1-9]|patterns\[\d|pattern\(\d|\[\(\d+, ?\d+\)"
)


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def stored(request):
    """A notebook as it is stored: its name, and what is in it."""
    content = request.param.read_text(encoding="utf-8")
    return request.param.stem, nbformat.v4.reads(content)  # nbformat.read mends names


def test_the_series_has_no_gap():
    assert [file.stem for file in FILES] == list(SERIES)


def test_the_readme_asks_its_question(stored):
    name, notebook = stored
    asked = re.search(r"\*\*Question: (.*?)\*\*", notebook.cells[0].source, re.DOTALL)[1]
    row = f"| [{name}](notebooks/{name}.ipynb) | {' '.join(asked.split())} |"
    assert row.lower() in (FOLDER.parent / "README.md").read_text("utf-8").lower()


def test_it_is_valid_and_all_have_the_same_metadata(stored):
    _, notebook = stored
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert not any(cell.metadata for cell in notebook.cells)


def test_it_is_stored_without_outputs(stored):
    for cell in code(stored):
        assert not cell.outputs
        assert cell.execution_count is None


def test_cells_have_names(stored):
    names = [cell.id for cell in stored[1].cells]
    assert len(set(names)) == len(names)
    odd = [name for name in names if not SLUG.fullmatch(name) or RANDOM_ID.fullmatch(name)]
    assert not odd


def test_it_asks_a_question_and_answers_it(stored):
    first, last = stored[1].cells[0], stored[1].cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    title, blank, question, *rest = first.source.splitlines()
    assert re.fullmatch(r"# \S.*", title)
    assert not blank
    assert re.fullmatch(r"\*\*Question: .*\?\*\*", question)
    assert len(" ".join(rest)) > 100
    assert last.source.startswith("## Answer\n\n")
    assert len(last.source) > 100


def test_it_cites_its_sources(stored):
    cited = [host for cell in prose(stored) for host in SOURCE.findall(cell.source)]
    assert any(host.endswith(SOURCES) for host in cited)


def test_it_loads_the_model_in_one_line(stored):
    name, _ = stored
    loads = [line for line in lines(stored) if "bl.load(" in line or "from_pretrained(" in line]
    if name == HISTORY:
        assert loads
        assert all('bl.load("demo-phases", ' in line for line in loads)
    else:
        assert loads.count(LOAD) == 1
        assert not [line for line in loads if line != LOAD and '"demo' in line]


def test_no_head_is_chosen_by_hand(stored):
    assert not [line for line in lines(stored) if BY_HAND.search(line)]


def test_cells_are_short_and_functions_shorter(stored):
    for cell in code(stored):
        assert len(cell.source.splitlines()) <= LINES["cell"], cell.id
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef), cell.id
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LINES["def"], (cell.id, node.name)


def test_no_warning_is_silenced(stored):
    silencing = re.compile(
        r"warnings|simplefilter|disable_progress|\blogging\b|set_verbosity|%%capture"
    )
    assert not [line for line in lines(stored) if silencing.search(line)]


def test_it_needs_no_network(stored):
    for cell in code(stored):
        assert "://" not in cell.source, cell.id
    for cell in prose(stored):
        assert "http://" not in cell.source, cell.id
        assert not re.search(r"<img|<script|<iframe|!\[|src=", cell.source), cell.id
        outside = re.sub(r"\]\(https://[^)\s]+\)", "", cell.source)
        assert "://" not in outside, cell.id  # a link is [text](https://...)


def test_formulas_are_plain_text(stored):
    for cell in prose(stored):
        text = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
        assert not re.search(r"\$[^$\n]+\$|\\\(|\\\[|\\begin", text), cell.id


def code(stored):
    """Its cells of code."""
    return [cell for cell in stored[1].cells if cell.cell_type == "code"]


def prose(stored):
    """Its cells of text."""
    return [cell for cell in stored[1].cells if cell.cell_type == "markdown"]


def lines(stored):
    """Lines of code without what is indented before them."""
    return [line.strip() for cell in code(stored) for line in cell.source.splitlines()]
