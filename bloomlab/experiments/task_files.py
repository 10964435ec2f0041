"""Where the data of ready tasks lie, and how their files are read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomlab.errors import InputError, UnknownNameError

EXCERPTS = Path(__file__).parent.parent / "excerpts"

Source = str | Path | None  # a folder, a file, or None: the excerpts of the package


def find_files(source: Source, part: str, pattern: str) -> dict[str, Path]:
    """The files of a data set by the name that `pattern` finds in theirs, sorted.

    Args:
        source: a file, a folder of files, a folder with a folder `part`, or None: the excerpts.
        part: name of the data set's folder.
        pattern: regular expression of whole file names; its group is the name.

    Raises:
        InputError: nothing there, no such files, or two of one name.
    """
    place = EXCERPTS if source is None else Path(source).expanduser()
    if place.is_file():
        inside = re.fullmatch(pattern, place.name)
        return {inside[1] if inside else place.stem: place}
    if not place.is_dir():
        raise InputError(f"there is no folder or file {str(place)!r}.")
    place = place / part if (place / part).is_dir() else place
    found: dict[str, Path] = {}
    for file in sorted(place.iterdir()):
        if inside := re.fullmatch(pattern, file.name):
            if inside[1] in found:
                raise InputError(
                    f"{str(place)!r} has several files of {inside[1]!r}: {found[inside[1]].name}, "
                    f"{file.name}. Name one file."
                )
            found[inside[1]] = file
    if not found:
        raise InputError(f"{str(place)!r} has no file whose name matches {pattern!r}.")
    return found


def find_file(source: Source, part: str, pattern: str, name: str) -> Path:
    """The file of one name; a file that was named itself is taken as it is.

    Raises:
        InputError: nothing there, no such files, or two of one name.
        UnknownNameError: no file of that name.
    """
    files = find_files(source, part, pattern)
    if source is not None and Path(source).expanduser().is_file():
        return next(iter(files.values()))
    if name not in files:
        raise UnknownNameError(f"file of {part} for", name, files)
    return files[name]


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        InputError: bytes that are not UTF-8; names file and line.
    """
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise bad_line(file, line, f"is not UTF-8 text ({error.reason})") from error


def read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with one a line, each with the number of its line.

    Raises:
        InputError: a line that holds no object, or a file that holds none; names file and line.
    """
    empty = True
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise bad_line(file, number, f"is not JSON: {error.msg}") from error
        if not isinstance(value, dict):
            raise bad_line(file, number, f"holds {value!r:.60}, expected an object {{...}}")
        empty = False
        yield number, value
    if empty:
        raise InputError(f"{file} is empty.")


def text_of(row: dict[str, Any], field: str, file: Path, number: int) -> str:
    """The text of a field.

    Raises:
        InputError: no such field, or no text in it; names file and line.
    """
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise bad_line(file, number, f"has {field} = {value!r:.60}, expected a text")
    return value


def bad_line(file: Path, number: int, fault: str) -> InputError:
    """The error of a line."""
    return InputError(f"{file}, line {number} {fault}.")
