"""The reference has every public name once; the table of hook points is the model's."""

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

import bloomlab
from bloomlab import errors
from tests.points import SIZES
from tests.tiny import pair, tokens

DOCS = Path(bloomlab.__file__).parent.parent / "docs"
MODULES = ("", "analysis", "demo", "experiments", "experiments.tasks", "interventions", "plots")
MODULES += ("session", "widgets")
SINGLE = {  # names meant for users, of modules that are not
    "bench.memory": ("held", "peak_extra"),
    "demo.measures": ("Copying", "copying"),
    "demo.planted": ("PlantedCircuit", "induction_circuit"),
    "machine": ("free_ram",),
    "model.alibi": ("absolute_alibi", "alibi_slopes", "relative_alibi"),
    "printable": ("printable_tokens",),
    "sizes": ("Need", "Sizes", "need", "readable", "sizes_of"),
}
ENTRY = re.compile(r"^::: (bloomlab[\w.]*)$", re.MULTILINE)


def entries():
    return [
        name
        for page in sorted((DOCS / "reference").glob("*.md"))
        for name in ENTRY.findall(page.read_text(encoding="utf-8"))
    ]


def target(name):
    """What a dotted name stands for."""
    home, _, last = name.rpartition(".")
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # inside a module
        spec = None
    if spec is None or spec.origin is None:  # a folder without code does not hide a function
        return getattr(target(home), last)
    return importlib.import_module(name)


def public():
    """Every public object with the names it has."""
    found = {}
    for module in MODULES:
        home = f"bloomlab.{module}".rstrip(".")
        for name in importlib.import_module(home).__all__:
            found.setdefault(id(target(f"{home}.{name}")), []).append(f"{home}.{name}")
    for module, names in SINGLE.items():
        for name in names:
            full = f"bloomlab.{module}.{name}"
            found.setdefault(id(target(full)), []).append(full)
    for name, value in vars(errors).items():
        if inspect.isclass(value) and value.__module__ == errors.__name__:
            found.setdefault(id(value), []).append(f"bloomlab.errors.{name}")
    interop = importlib.import_module("bloomlab.interop")
    for name, value in vars(interop).items():
        if not name.startswith("_") and getattr(value, "__module__", "") == interop.__name__:
            found.setdefault(id(value), []).append(f"bloomlab.interop.{name}")
    return found


def test_every_public_name_is_in_the_reference_once():
    listed = [name for name in entries() if not name.startswith("bloomlab.lm_eval")]
    assert "bloomlab.lm_eval.BloomLM" in entries()  # needs an extra to import
    places = {}
    for name in listed:
        places.setdefault(id(target(name)), []).append(name)
    twice = [names for names in places.values() if len(names) > 1]
    missing = [names[0] for one, names in public().items() if one not in places]
    assert not twice, f"named twice in docs/reference: {twice}"
    assert not missing, "not in docs/reference: " + ", ".join(f"::: {name}" for name in missing)


def test_nothing_private_is_in_the_reference():
    known = public()
    modules = {f"bloomlab.{name}".rstrip(".") for name in (*MODULES, "errors", "interop")}
    for name in entries():
        if not name.startswith("bloomlab.lm_eval"):
            assert name in modules or id(target(name)) in known, name


def imported():
    """Every name that notebooks, README and pages take from a module of the package."""
    texts = [
        "".join(cell["source"])
        for file in (DOCS.parent / "notebooks").glob("*.ipynb")
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        if page.is_file():
            code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
            texts += map(inspect.cleandoc, code)
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bloomlab"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_notebooks_and_pages_import_is_in_the_reference():
    listed = {id(target(name)) for name in entries() if not name.startswith("bloomlab.lm_eval")}
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    modules = {f"bloomlab.{name}" for name in MODULES}
    used = set(imported()) - modules - {"bloomlab.lm_eval.BloomLM"}
    assert "bloomlab.sizes.need" in used
    unknown = [
        name
        for name in sorted(used)
        if id(target(name)) not in listed and not any(f"`{name}`" in page for page in pages)
    ]
    assert not unknown, f"not in docs/reference: {unknown}"


ROW = re.compile(r"^\| `([\w.{}]+)` \| ([\w ]+) \| .*?(\(\d\))? \|$", re.MULTILINE)
AXES = {**SIZES, "1": 1, "query": SIZES["pos"], "key": SIZES["pos"]}


@pytest.mark.parametrize("forked", ["attn_in", "split_qkv_input"])
@torch.no_grad()
def test_the_table_of_hook_points_is_the_models(forked):
    text = (DOCS / "concepts" / "hooks.md").read_text(encoding="utf-8")
    rows = [(name.replace("{i}", "1"), axes.split()) for name, axes, _ in ROW.findall(text)]
    _, model = pair()
    points = {name for name in model.hook_dict if not name.startswith("blocks.0.")}
    assert {name for name, _ in rows} == points

    other = {"attn_in": r"hook_[qkv]_input$", "split_qkv_input": r"hook_attn_in$"}[forked]
    wanted = [(name, axes) for name, axes in rows if not re.search(other, name)]
    fired = []

    def seen(value, hook):
        fired.append((hook.name, list(value.shape)))

    model.run_with_hooks(
        tokens(SIZES["batch"], SIZES["pos"]), fwd_hooks=[(name, seen) for name, _ in wanted]
    )
    assert fired == [(name, [AXES[axis] for axis in axes]) for name, axes in wanted]
