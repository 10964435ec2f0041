"""Tables in Markdown pages that are made anew from what was measured.

A table stands between `<!-- table: name -->` and `<!-- end -->`; the words around it are the
author's.
"""

import re

from bloomlab.errors import InputError, UnknownNameError

SLOT = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables_in(page: str) -> list[str]:
    """Names of a page's tables, in their order."""
    return [slot[2] for slot in SLOT.finditer(page)]


def with_table(page: str, name: str, table: str) -> str:
    """The page with another text between the marks of one table.

    Raises:
        UnknownNameError: the page has no marks for it.
        InputError: a text that holds marks itself.
    """
    if "<!-- end -->" in table or SLOT.search(table):
        raise InputError(f"the text for table {name!r} holds marks of a table.")
    if name not in tables_in(page):
        where = f"The page has {', '.join(tables_in(page)) or 'none'}; add the line <!-- table: "
        where += f"{name} --> and below it <!-- end -->."
        raise UnknownNameError("table", name, tables_in(page), where=where)

    def made(slot: re.Match[str]) -> str:
        return f"{slot[1]}{table}\n{slot[3]}" if slot[2] == name else slot[0]

    return SLOT.sub(made, page)
