import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError
from bloomlab.plots import edges_figure

FRAME = pd.DataFrame(
    [
        ("embed", "L0H1.q", 0.5),
        ("embed", "L0H0.v", -1.0),
        ("L0H1", "MLP0", 2.0),
        ("L0H0", "L10H2.k", -0.25),
        ("MLP0", "logits", 1.5),
        ("L10H2", "logits", 0.125),
        ("embed", "logits", np.nan),
    ],
    columns=["sender", "receiver", "score"],
)


def edges(figure):
    """Lines by what their hover text says."""
    return {line.hovertemplate.split("<")[0]: line for line in figure.data if line.hovertemplate}


def boxes(figure):
    return {note.text: (note.x, note.y) for note in figure.layout.annotations}


def test_size_is_width_and_opacity_and_sign_is_colour():
    lines = edges(edges_figure(FRAME, title="circuit"))
    assert list(lines)[-1] == "L0H1 → MLP0: +2"  # the strongest is on top
    assert len(lines) == 6  # NaN is no edge
    order = sorted(
        lines.values(), key=lambda line: abs(float(line.hovertemplate[:-15].split()[-1]))
    )
    for key in ("width", "opacity"):
        seen = [line.opacity if key == "opacity" else line.line.width for line in order]
        assert seen == sorted(seen)
        assert len(set(seen)) == 6
    colors = {("−" if ": -" in text else "+", line.line.color) for text, line in lines.items()}
    assert len(colors) == 2


def test_layers_run_to_the_right_heads_in_order_and_the_mlp_behind_them():
    at = boxes(edges_figure(FRAME))
    order = ["embed", "L0H0", "MLP0", "L10H2", "logits"]
    assert [at[name][0] for name in order] == [0, 1, 2, 3, 4]
    assert at["L0H1"][0] == at["L0H0"][0]
    assert at["L0H1"][1] < at["L0H0"][1]


def test_an_edge_runs_from_its_sender_to_its_receiver():
    figure = edges_figure(FRAME)
    at = boxes(figure)
    for text, line in edges(figure).items():
        sender, receiver = text.split(":")[0].split(" → ")
        (x0, y0), (x1, y1) = at[sender], at[receiver.split(".")[0]]
        assert x0 < line.x[0] < line.x[-1] < x1
        assert line.y[0] == y0
        assert line.y[-1] == pytest.approx(y1, abs=0.25)


def test_edges_to_queries_keys_and_values_end_apart_from_the_top():
    reads = ["L1H0.q", "L1H0.k", "L1H0.v"]
    frame = pd.DataFrame({"sender": "L0H0", "receiver": reads, "score": 1.0})
    ends = {text.split()[2]: line.y[-1] for text, line in edges(edges_figure(frame)).items()}
    assert ends["L1H0.q:"] > ends["L1H0.k:"] > ends["L1H0.v:"]


def test_an_edge_passes_over_boxes_if_positive_and_under_them_if_negative():
    frame = pd.DataFrame(
        {
            "sender": ["embed", "embed", "embed", "embed"],
            "receiver": ["L0H0.q", "L0H1.q", "MLP0", "logits"],
            "score": [0.1, 0.1, 1.0, -1.0],
        }
    )
    figure = edges_figure(frame)
    (_, high), (_, low) = boxes(figure)["L0H0"], boxes(figure)["L0H1"]
    lines = edges(figure)
    for text, beyond in (("embed → MLP0: +1", high), ("embed → logits: -1", low)):
        over = [y for x, y in zip(lines[text].x, lines[text].y, strict=True) if abs(x - 1) < 0.2]
        assert over
        assert all(y > beyond + 0.5 if beyond > 0 else y < beyond - 0.5 for y in over)


def test_the_strongest_edges_are_drawn_with_their_boxes_alone():
    figure = edges_figure(FRAME, top=2)
    assert set(edges(figure)) == {"L0H1 → MLP0: +2", "MLP0 → logits: +1.5"}
    assert set(boxes(figure)) == {"L0H1", "MLP0", "logits"}
    assert [line.name for line in figure.data if line.name] == ["score &gt; 0"]


def test_another_column_and_other_names_of_mlps():
    frame = pd.DataFrame({"sender": ["L1 mlp"], "receiver": ["L2 mlp"], "change": [-3]})
    figure = edges_figure(frame, value="change")
    assert set(boxes(figure)) == {"L1 mlp", "L2 mlp"}
    assert [line.name for line in figure.data if line.name] == ["change &lt; 0"]


def test_a_graph_of_zeros_is_drawn():
    assert len(edges(edges_figure(FRAME.assign(score=0)))) == 7


def test_wrong_frames_are_refused():
    with pytest.raises(InputError, match="no column 'effect'"):
        edges_figure(FRAME, value="effect")
    with pytest.raises(InputError, match="is empty"):
        edges_figure(FRAME[:0])
    with pytest.raises(InputError, match="no edge has a finite 'score'"):
        edges_figure(FRAME.assign(score=np.nan))
    with pytest.raises(InputError, match="'<b>' is no component"):
        edges_figure(FRAME.assign(sender="<b>"))
    with pytest.raises(InputError, match="top is 0"):
        edges_figure(FRAME, top=0)
