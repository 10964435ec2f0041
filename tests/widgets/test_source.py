import re

import pytest

from bloomlab.widgets.source import FOLDER, style
from tests.widgets.asking import NAMES, make

SVG = "http://www.w3.org/2000/svg"
SOURCES = sorted(one.name for one in FOLDER.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_small_and_draws_its_own_view(name, session):
    view = make(name, session)
    assert len(view._esm.encode()) < 60_000
    assert view._esm.startswith(f'const TITLE = "{name}", VIEW = {view.kind};')
    assert f"function {view.kind}(shell)" in view._esm
    assert view._esm.count("export default") == 1
    assert view._css == style()


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_names_an_address(name):
    text = (FOLDER / name).read_text("utf-8").replace(SVG, "")
    assert not re.findall(r"https?:|\bwss?://|//[a-z]+\.|\bimport\b|\bfetch\(|XMLHttp", text)


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_makes_code_or_markup_of_text(name):
    text = (FOLDER / name).read_text("utf-8")
    forbidden = r"\beval\b|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write"
    assert not re.findall(forbidden, text)
    assert "</script" not in text
