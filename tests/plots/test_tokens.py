import html

import pytest

from bloomlab.plots.tokens import axis, escape, fitted, label_room, places, steps_axis

HOSTILE = ["<b>bold</b>", "<s>", "a & b", "<a href='x'>", '"quoted"', "&lt;"]


@pytest.mark.parametrize("token", HOSTILE)
def test_a_token_is_drawn_as_the_text_it_is(token):
    drawn = escape(html.escape(token))
    assert html.unescape(drawn) == token
    assert "<" not in drawn
    assert "&quot;" not in drawn  # plotly would print these six letters


@pytest.mark.parametrize("token", HOSTILE[:-1])  # a raw &lt; cannot be told from an escaped <
def test_raw_and_escaped_labels_look_the_same(token):
    assert escape(token) == escape(html.escape(token))


def test_repeated_tokens_have_different_names():
    assert len(set(places(["the"] * 5))) == 5


@pytest.mark.parametrize("count", [1, 48, 49, 200, 1000])
def test_at_most_48_labels_each_at_its_own_token(count):
    tokens = [f"t{pos}" for pos in range(count)]
    made = axis(tokens, title="")
    assert count / 48 / 2 <= count / len(made["tickvals"]) or count <= 48
    assert len(made["tickvals"]) <= 48
    assert [tokens[int(at)] for at in made["tickvals"]] == made["ticktext"]
    assert count > 48 or len(made["tickvals"]) == count


def test_a_long_label_is_shortened_before_it_is_escaped():
    text = axis(["<" * 100], title="")["ticktext"][0]
    assert text == "&lt;" * 13 + "…"


def test_blocks_are_labelled_in_their_middle():
    assert axis(list("ab"), title="", width=3, pitch=5)["tickvals"] == [1.0, 6.0]


def test_wide_letters_take_more_room():
    assert label_room(["你好"]) > label_room(["ab"]) > label_room([]) == 0


def test_a_text_is_cut_to_its_room_before_it_is_escaped():
    assert fitted("short", 60) == "short"
    assert fitted("&lt;" * 9, 40) == "&lt;" * 4 + "…"
    assert fitted("a<b", 1000) == "a&lt;b"
    assert fitted("long", 2) == ""
    assert len(fitted("你" * 9, 60)) < len(fitted("n" * 9, 60))


def test_marks_take_no_room():
    assert label_room(["e\u0301" * 4]) == label_room(["e" * 4])


def test_the_labels_of_steps_stand_at_their_numbers():
    made = steps_axis(["a", "<b>"], title="token")
    assert (made["type"], made["range"]) == ("linear", [-0.5, 1.5])
    assert dict(zip(made["tickvals"], made["ticktext"], strict=True)) == {0: "a", 1: "&lt;b&gt;"}


def test_fewer_labels_if_asked():
    assert axis(list("abcdefgh"), title="", most=4)["ticktext"] == list("aceg")
