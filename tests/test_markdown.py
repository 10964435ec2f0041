import pytest

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.markdown import tables_in, with_table

PAGE = (
    "Words.\n<!-- table: a -->\nold\n<!-- end -->\n\n"
    "<!-- table: 560m-blocks -->\n<!-- end -->\nMore.\n"
)


def test_a_table_is_replaced_and_the_rest_stays():
    assert tables_in(PAGE) == ["a", "560m-blocks"]
    made = with_table(PAGE, "560m-blocks", r"| 1 \n |")
    assert made == PAGE.replace("blocks -->\n", "blocks -->\n| 1 \\n |\n")
    assert with_table(with_table(PAGE, "a", "new"), "a", "old") == PAGE


def test_a_page_without_the_marks_says_what_to_add():
    with pytest.raises(UnknownNameError, match=r"no table 'b'.*has a, 560m-blocks; add the line"):
        with_table(PAGE, "b", "")
    with pytest.raises(UnknownNameError, match="has none"):
        with_table("", "b", "")


@pytest.mark.parametrize("text", ["<!-- end -->", "<!-- table: c -->\n<!-- end -->"])
def test_marks_do_not_nest(text):
    with pytest.raises(InputError, match="holds marks"):
        with_table(PAGE, "a", text)
