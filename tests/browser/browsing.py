"""Debian's Chromium under Playwright, cut off from everything but this machine."""

import os
import re
import shutil
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest

SIZE = {"width": 1400, "height": 1100}
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
LOCAL = ("127.0.0.1", "localhost")
OUTSIDE = ("http", "https", "ws", "wss")  # data: and blob: addresses reach nothing
CUT_OFF = [  # a proxy nobody serves fails every request to elsewhere, WebSockets and workers too
    "--proxy-server=http://127.0.0.1:9",
    f"--proxy-bypass-list={';'.join(LOCAL)}",
]


def missing(what):
    """Skip the test for want of something; under CI, fail it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what}; .ci/run installs it")


def plain(text):
    """A traceback without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def chromium():
    """Path of the browser: $CHROMIUM, or the first one installed."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    return found or missing("no Chromium on this machine")


class Browser:
    """A browser with a fresh profile, and a record of all that went wrong in its pages.

    Only one at a time: Playwright's synchronous interface keeps an event loop in this thread.
    """

    def __enter__(self):
        try:
            from playwright.sync_api import sync_playwright
        except ModuleNotFoundError:
            missing("no playwright in this environment")
        self._problems, program = [], chromium()
        with ExitStack() as ends:
            profile = ends.enter_context(
                TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
            )
            playwright = ends.enter_context(sync_playwright())
            # Requests are recorded, not routed: Playwright turns the cache off for routes.
            self._context = ends.enter_context(
                playwright.chromium.launch_persistent_context(
                    profile, executable_path=program, viewport=SIZE, args=CUT_OFF
                )
            )
            self._ends = ends.pop_all()
        self._context.on("request", lambda request: self._check(request.url))
        self._context.on("weberror", self._catch)
        self._context.on("console", self._hear)
        return self

    def __exit__(self, *_):
        self._ends.close()

    def page(self):
        """A new, empty page."""
        page = self._context.new_page()
        page.on("websocket", lambda socket: self._check(socket.url))
        return page

    def problems(self):
        """What went wrong since last asked: errors of pages and requests to the outside."""
        for page in self._context.pages:
            page.evaluate("0")  # events arrive with an answer
        found, self._problems = self._problems, []
        return found

    def _check(self, url):
        parts = urlsplit(url)
        if parts.scheme in OUTSIDE and parts.hostname not in LOCAL:
            self._problems.append(f"blocked: {url}")

    def _catch(self, thrown):
        self._problems.append(thrown.error.stack or str(thrown.error))

    def _hear(self, message):
        if message.type == "error":
            self._problems.append(plain(f"console: {message.text} {message.location['url']}"))
