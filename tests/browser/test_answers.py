"""Answers reach the question that was asked, however fast questions come, and whoever hears."""

from tests.browser.views import START, Views

GO = "head => document.querySelector('.bl[data-kind=zoom]').shell.wire.go({ layer: 2, head })"
EDIT = """heads => Promise.all(heads.map(head => document.querySelector('.bl[data-kind=mask]').shell
    .ask({ op: 'edit', heads: [[0, head]], scale: 0 }, { write: true }))).then(all =>
        all.filter(one => one?.labels).length)"""

BOTH = """async () => {
    const [a, b] = [...document.querySelectorAll('.bl[data-kind=zoom]')].map(r => r.shell.wire)
    a.next = b.next = Math.max(a.next, b.next)
    const of = { layer: 2, head: 1, run: 'edited', mode: 'pattern' }
    const block = { row: 0, column: 0, rows: 1, columns: 1 }
    const both = [a.ask({ op: 'head', ...of }), b.ask({ op: 'block', ...of, ...block })]
    return (await Promise.all(both)).map(answer => answer.buffers[0].length) }"""


def test_fast_clicks_end_at_the_last_head(lab_page):
    views = Views(lab_page([START, "widgets.HeadZoom(session)"]))
    views.settled()
    pictures = {}
    for head in (4, 6):
        views.page.evaluate(GO, head)
        views.page.wait_for_timeout(500)
        views.settled()
        pictures[head] = views.ink("zoom")
    for heads in ((1, 4), (5, 0, 6), (3, 2, 4)):  # the last is known already, the others are not
        for head in heads:
            views.page.evaluate(GO, head)
        views.page.wait_for_timeout(800)
        views.settled()
        assert views.ink("zoom") == pictures[heads[-1]]


def test_no_change_is_lost_however_fast_they_come(lab_page):
    views = Views(lab_page([START, "widgets.HeadMaskLab(session)"]))
    views.settled()
    assert views.page.evaluate(EDIT, [1, 2, 3, 5]) == 4  # every one is answered
    assert views.lab.ask("(session.edits.scale[0] == 0).nonzero()[0].tolist()") == "[1, 2, 3, 5]"


def test_two_displays_of_one_view_keep_their_answers_apart(lab_page):
    views = Views(lab_page([START, "view = widgets.HeadZoom(session)\nview", "view"]))
    views.settled()
    assert views.page.evaluate(BOTH) == [231, 4]  # a triangle of 21 tokens; one float32
