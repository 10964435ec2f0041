"""One notebook in a page of JupyterLab."""

import json
import os
from pathlib import Path

from tests.browser.browsing import plain
from tests.browser.jupyter import ROOT

PATIENCE = 120_000  # milliseconds until JupyterLab or a run of all cells counts as stuck
QUICK = 10_000  # milliseconds for what needs no new kernel
PANEL = "jupyterapp.shell.currentWidget"
KERNEL = f"{PANEL}.sessionContext.session.kernel"
READY = f"""() => window.jupyterapp && {PANEL}?.sessionContext?.isReady
    && {PANEL}.sessionContext.session?.kernel?.status === 'idle'"""
# What raises while a widget's message is handled is no cell's output: it is told to the console.
LISTEN = f"""() => {{ {PANEL}.sessionContext.iopubMessage.connect((_, message) => {{
    if (message.header.msg_type === 'error' && message.parent_header.msg_type !== 'execute_request')
        console.error('kernel: ' + message.content.traceback.join('\\n')) }}) }}"""
COMMAND = "([name, options]) => jupyterapp.commands.execute(name, options).then(() => null)"
RUN_ALL = """patience => Promise.race([
    jupyterapp.commands.execute('notebook:run-all-cells').then(() => null),
    new Promise((_, no) => setTimeout(() => no(new Error('cells still run')), patience))])"""
FAILURES = f"""() => [...{PANEL}.content.model.cells].filter(cell => cell.type === 'code')
    .flatMap(cell => cell.sharedModel.outputs).filter(output => output.output_type === 'error')
    .map(output => output.traceback.join('\\n'))"""
ASK = f"""async code => {{
    const done = await {KERNEL}.requestExecute(
        {{code: '', silent: true, user_expressions: {{answer: code}}}}).done
    const answer = done.content.user_expressions.answer
    if (answer.status !== 'ok') throw new Error(answer.ename + ': ' + answer.evalue)
    return answer.data['text/plain'] }}"""
MILLISECONDS = """async ([act, until]) => {
    const done = new Function('return ' + until), start = performance.now()
    new Function(act)()
    while (!done()) {
        if (performance.now() - start > 10000) throw new Error('never came true: ' + until)
        await new Promise(requestAnimationFrame) }
    return performance.now() - start }"""


class CellFailed(Exception):
    """A cell raised; the message is its traceback."""


class LabPage:
    """A notebook open in JupyterLab; `page` is Playwright's, for locators and everything else.

    A time is measured in the page, where the test's own machinery costs nothing:

        lab.milliseconds("document.querySelector('canvas').click()",
                         until="document.querySelector('.status').textContent === 'L3H7'")

    Anything else: `lab.page.evaluate("async () => { ... performance.now() ... }")`.
    """

    def __init__(self, browser, server):
        self.page, self._browser, self._server = browser.page(), browser, server
        self._file = None

    def open(self, notebook, *, theme):
        """Show the notebook, its kernel idle."""
        self._file = self._server.write(notebook)
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(self._server.page_of(self._file))
        self.page.wait_for_function(READY)
        self.page.set_default_timeout(QUICK)
        self.page.evaluate(LISTEN)
        self.set_theme(theme)

    def command(self, name, **options):
        """Run a command of JupyterLab's to its end."""
        self.page.evaluate(COMMAND, [name, options])

    def set_theme(self, name):
        """Show JupyterLab in a theme: `LIGHT` or `DARK` of tests.browser.jupyter."""
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)

    def run_all(self):
        """Run every cell.

        Raises:
            CellFailed: with the traceback of the first cell that raised.
        """
        self.page.evaluate(RUN_ALL, PATIENCE)
        if failures := self.page.evaluate(FAILURES):
            raise CellFailed(plain(failures[0]))

    def cell(self, index):
        """Locator of a cell with its output, counted from 0."""
        return self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}']")

    def scroll_to(self, index):
        """Bring a cell into view, where the notebook's windowing may have taken it out."""
        self.page.evaluate(f"index => {PANEL}.content.scrollToItem(index, 'center')", index)
        self.cell(index).wait_for()

    def ask(self, expression):
        """What a Python expression is in the kernel, as its `repr`."""
        return self.page.evaluate(ASK, expression)

    def milliseconds(self, act, *, until):
        """Time from a JavaScript statement to the first frame in which an expression is true."""
        return self.page.evaluate(MILLISECONDS, [act, until])

    def save(self):
        """Save the notebook; gives it as it then stands in the file."""
        self.command("docmanager:save")
        self.page.wait_for_function(f"() => !{PANEL}.context.model.dirty")
        return json.loads(self._file.read_text(encoding="utf-8"))

    def shot(self, name, *, of=None):
        """Write a picture of the page, or of the first thing a selector finds; gives its file."""
        folder = Path(os.environ.get("BLOOMLAB_SCREENSHOTS", ROOT / "build" / "screenshots"))
        file = folder / f"{name}.png"
        (self.page.locator(of).first if of else self.page).screenshot(path=file)
        return file

    def problems(self):
        """What went wrong since last asked; what is left at the end fails the test."""
        return self._browser.problems()
