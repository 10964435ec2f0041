"""Notebooks in a real browser: one browser, one server a windowing mode, a page a notebook."""

from contextlib import ExitStack
from functools import cache

import pytest

from tests.browser.browsing import Browser
from tests.browser.jupyter import LIGHT, JupyterLab, notebook
from tests.browser.page import LabPage


def pytest_itemcollected(item):  # pytest calls it for this folder's tests alone
    item.add_marker("browser")


@pytest.fixture(scope="session")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def jupyter():
    """Gives the server of a windowing mode, started when first asked for."""
    with ExitStack() as servers:
        yield cache(lambda windowing: servers.enter_context(JupyterLab(windowing=windowing)))


@pytest.fixture
def lab_page(browser, jupyter):
    """Opens a notebook, given as its cells' sources or whole, and runs it."""
    with ExitStack() as kernels:  # ended once no page is left that would complain
        with ExitStack() as pages:

            def open_page(cells, *, theme=LIGHT, windowing="none"):
                server = jupyter(windowing)
                kernels.callback(server.end_kernels)
                lab = LabPage(browser, server)
                pages.callback(lab.page.close)
                lab.open(cells if isinstance(cells, dict) else notebook(*cells), theme=theme)
                lab.run_all()
                return lab

            yield open_page
        problems = browser.problems()
    assert problems == []
