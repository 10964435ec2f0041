"""The law of imports: one way, layer by layer. `problems` is tested on planted faults too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bloomlab

PACKAGE = Path(bloomlab.__file__).parent
ROOT = PACKAGE.parent
PUBLIC = ""  # bloomlab/__init__.py, which lends the public names of all layers
GROUND = {"errors", "tokens", "printable"}  # every layer may use these
MODEL = {"model", "sizes"}
STUDY = MODEL | {"trace", "interventions", "analysis"}
LAYERS = {  # a module or folder of the package -> what else of the package it may import
    "errors": set(),
    "printable": {"errors"},
    "markdown": {"errors"},
    "tokens": {"errors", "printable"},
    "sizes": GROUND,
    "machine": GROUND | {"sizes", PUBLIC},
    "model": GROUND | {"sizes"},
    "trace": GROUND | MODEL,
    "schedule": GROUND | MODEL,
    "interventions": GROUND | MODEL | {"schedule"},
    "session": GROUND | STUDY | {"experiments"},
    "parallel": GROUND | MODEL | {"machine"},
    "analysis": GROUND,
    "plots": GROUND,
    "widgets": GROUND | {"plots", "analysis"},
    "experiments": GROUND | STUDY,
    "interop": GROUND | MODEL | {"trace"},
    "lm_eval": GROUND | STUDY | {"experiments"},
    "demo": GROUND | STUDY | {"experiments", "markdown"},
    "describe": GROUND | MODEL | {"machine"},
    "bench": GROUND | MODEL | {"machine", "markdown", PUBLIC},
    "__main__": {"cli"},
    "lab": GROUND | {"session", "widgets"},
    "cli": GROUND | STUDY | {"experiments", "parallel", "machine", "describe", "bench", PUBLIC},
}
NEVER = {  # what a layer may not reach, in no number of steps
    "plots": ("torch", "transformers", "bloomlab.model"),
    "widgets": ("bloomlab.model",),
    "analysis": ("plotly", "bloomlab.model"),
    "sizes": ("torch", "transformers"),
    "errors": ("torch", "transformers"),
}
HF_NAMES = re.compile(
    r"query_key_value|(?<!tie_)word_embeddings|dense_h_to_4h|dense_4h_to_h|self_attention\.|"
    r"input_layernorm|(?<!connection_)post_attention_layernorm"
)
LINES = 300
LONGER: dict[str, str] = {}  # a longer file, from the root -> the reason


def problems(package: Path) -> list[str]:
    """Every breach of the law in a package, as `file: what`; none is an empty list."""
    found = []
    modules = {_module(file, package): file for file in sorted(package.rglob("*.py"))}
    imports = {
        module: list(_imports(file, module, set(modules))) for module, file in modules.items()
    }
    for module, file in modules.items():
        name, text = file.relative_to(package.parent).as_posix(), file.read_text(encoding="utf-8")
        layer = _layer(module, package.name)
        if layer and layer not in LAYERS:
            found.append(f"{name}: {layer!r} has no place in the layers; give it one in LAYERS")
            continue
        for target in imports[module]:
            other = _layer(target, package.name)
            inside = target.split(".")[0] == package.name
            if layer and inside and other != layer and other not in LAYERS[layer]:
                found.append(f"{name}: {layer} must not import {target}")
            outside = target.split(".")[0]
            if outside == "transformer_lens" and module != f"{package.name}.model.hooks":
                found.append(f"{name}: only model/hooks.py imports transformer_lens")
        for target in NEVER.get(layer, ()):
            if path := _path(module, target, imports):
                found.append(f"{name}: reaches {target}: {' -> '.join(path)}")
        if module != f"{package.name}.model.checkpoint" and (match := HF_NAMES.search(text)):
            found.append(
                f"{name}: {match[0]!r} is transformers' name; those stand in checkpoint.py"
            )
        found += [f"{name}: {fault}" for fault in _style(name, text)]
    return found


def _style(name: str, text: str) -> Iterator[str]:
    if (count := len(text.splitlines())) > LINES and name not in LONGER:
        yield f"{count} lines, at most {LINES}"
    if re.search(r"^from __future__ import .*annotations", text, re.MULTILINE):
        yield "postponed annotations blind the runtime shape checks"
    if Path(name).stem in ("utils", "helpers", "common", "base"):
        yield "a file is named after its one concept"


def _module(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _layer(module: str, package: str) -> str:
    """First name below the package; PUBLIC for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == package and len(parts) > 1 else PUBLIC


def _imports(file: Path, module: str, modules: set[str]) -> Iterator[str]:
    """Absolute name of everything a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: None if file.stem == "__init__" else -1]
            home = ".".join(above[: len(above) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (home, node.module) if part)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in modules else base


def _path(start: str, target: str, imports: dict[str, list[str]]) -> list[str]:
    """Shortest chain of imports from a module to `target` or something in it; empty if none."""
    chains, seen = [[start]], {start}
    for chain in chains:
        for module in imports.get(chain[-1], []):
            if module == target or module.startswith(target + "."):
                return [*chain, module]
            if module not in seen:
                seen.add(module)
                chains.append([*chain, module])
    return []


def test_the_package_obeys():
    assert problems(PACKAGE) == []


def test_test_files_obey_the_style_too():
    files = {f.relative_to(ROOT).as_posix(): f for f in sorted((ROOT / "tests").rglob("*.py"))}
    found = [f"{n}: {x}" for n, f in files.items() for x in _style(n, f.read_text("utf-8"))]
    assert found == []


def test_exceptions_are_still_needed():
    assert [n for n in LONGER if len((ROOT / n).read_text("utf-8").splitlines()) <= LINES] == []


def test_continuous_integration_runs_the_test_command_of_the_readme():
    command = "pip install -e '.[test]' && pytest"
    assert f"\n{command}\n" in (ROOT / "README.md").read_text("utf-8")
    assert f"\n({command})\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_public_names_are_sorted_and_there():
    for names in (bloomlab.__all__, list(bloomlab._HOMES), list(bloomlab._PACKAGES)):
        assert list(names) == sorted(names)
    assert all(hasattr(bloomlab, name) for name in bloomlab.__all__)
    assert set(bloomlab.__all__) <= set(dir(bloomlab))


OBEDIENT = {
    "__init__.py": "from bloomlab.model.bloom import BloomModel\n",
    "errors.py": "",
    "printable.py": "from bloomlab.errors import X\n",
    "model/__init__.py": "",
    "model/hooks.py": "from transformer_lens.hook_points import HookPoint\n",
    "model/checkpoint.py": "NAMES = ['self_attention.query_key_value', 'word_embeddings']\n",
    "model/bloom.py": "import torch\nfrom .hooks import HookPoint\nfrom bloomlab.errors import X\n",
    "analysis/entropy.py": "import torch\n",
    "plots/__init__.py": "from bloomlab.plots import attention\n",
    "plots/attention.py": "import plotly\n",
    "widgets/view.py": "from ..plots import attention\nfrom bloomlab.plots.attention import f\n",
    "experiments/patching.py": "from bloomlab import model\nimport bloomlab.analysis.entropy\n",
}


@pytest.fixture
def package(tmp_path):
    for name, source in OBEDIENT.items():
        file = tmp_path / "bloomlab" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    return tmp_path / "bloomlab"


def test_an_obedient_package_has_no_problems(package):
    assert problems(package) == []


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("errors.py", "import bloomlab.model.bloom", "errors must not import bloomlab.model"),
        ("model/cache.py", "from bloomlab import session", "model must not import bloomlab"),
        ("model/cache.py", "from bloomlab.experiments.patching import p", "model must not import"),
        ("model/cache.py", "from ..plots.attention import f", "model must not import bloomlab.plo"),
        ("model/bloom.py", "import transformer_lens", "only model/hooks.py imports"),
        ("experiments/x.py", "from transformer_lens import patching", "only model/hooks.py imp"),
        ("analysis/x.py", "from bloomlab.model.bloom import B", "analysis must not import"),
        ("analysis/x.py", "from bloomlab.plots.attention import f", "analysis must not import"),
        ("plots/x.py", "import torch", "reaches torch: bloomlab.plots.x -> torch"),
        ("plots/x.py", "def f():\n    from torch import nn", "reaches torch"),
        ("plots/x.py", "from bloomlab.analysis.entropy import e", "plots must not import"),
        ("printable.py", "import torch.nn", ""),
        ("widgets/x.py", "from bloomlab.model.bloom import B", "widgets must not import"),
        ("widgets/x.py", "from bloomlab.experiments.patching import p", "widgets must not import"),
        ("widgets/x.py", "from bloomlab.analysis.entropy import e", ""),
        ("widgets/x.py", "from bloomlab import BloomModel", "widgets must not import bloomlab"),
        ("newcomer.py", "", "'newcomer' has no place in the layers"),
        ("model/x.py", "n = 'query_key_value'", "'query_key_value' is transformers' name"),
        ("model/x.py", "n = 'h.0.mlp.dense_h_to_4h.bias'", "'dense_h_to_4h' is transformers' name"),
        ("model/x.py", "n = word_embeddings", "'word_embeddings' is transformers' name"),
        ("model/x.py", "n = tie_word_embeddings", ""),
        ("model/x.py", "from __future__ import annotations", "postponed annotations"),
        ("model/x.py", "x = 1\n" * 301, "301 lines, at most 300"),
        ("model/x.py", "x = 1\n" * 300, ""),
        ("model/utils.py", "", "named after its one concept"),
    ],
)
def test_a_planted_fault_is_found(package, name, source, problem):
    (package / name).write_text(source + "\n" * bool(source and source[-1] != "\n"))
    found = problems(package)
    if problem:
        assert any(problem in line and line.startswith(f"bloomlab/{name}: ") for line in found)
    else:
        assert found == []


def test_a_forbidden_import_is_found_through_other_modules(package):
    (package / "printable.py").write_text("import torch\n")
    (package / "plots/attention.py").write_text("from bloomlab.printable import text\n")
    chain = "bloomlab.plots.attention -> bloomlab.printable -> torch"
    assert f"bloomlab/plots/attention.py: reaches torch: {chain}" in problems(package)
