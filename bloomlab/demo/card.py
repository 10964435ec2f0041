"""The tables of the model card, written from what `bloomlab.demo.evaluate` measured."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bloomlab.errors import InputError
from bloomlab.markdown import tables_in, with_table

LANGUAGE_NAMES = {
    **{"ar": "Arabic", "as": "Assamese", "bn": "Bengali", "ca": "Catalan", "en": "English"},
    **{"es": "Spanish", "eu": "Basque", "fr": "French", "gu": "Gujarati", "hi": "Hindi"},
    **{"id": "Indonesian", "kn": "Kannada", "lg": "Luganda", "ml": "Malayalam", "mr": "Marathi"},
    **{"nso": "Northern Sotho", "or": "Odia", "pa": "Punjabi", "pt": "Portuguese"},
    **{"st": "Sesotho", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tn": "Setswana"},
    **{"ts": "Xitsonga", "vi": "Vietnamese", "xh": "Xhosa", "zh": "Chinese", "zu": "Zulu"},
    **{"code_c": "C", "code_cpp": "C++", "code_go": "Go", "code_java": "Java"},
    **{"code_javascript": "JavaScript", "code_lua": "Lua", "code_php": "PHP"},
    **{"code_python": "Python", "code_ruby": "Ruby", "code_rust": "Rust"},
    "code_typescript": "TypeScript",
}


def filled(card: str, found: Mapping[str, Any]) -> str:
    """The card with every table made anew from the results.

    Raises:
        InputError: a slot for a table nobody writes, or whose results are missing.
    """
    for name in tables_in(card):
        if name not in TABLES:
            raise InputError(f"the card wants a table {name!r}; there are {sorted(TABLES)}.")
        try:
            card = with_table(card, name, TABLES[name](found))
        except KeyError as missing:
            raise InputError(f"table {name!r} needs results that lack {missing}.") from missing
    return card


def _rows(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _languages(found: Mapping[str, Any]) -> str:
    measured = found["languages"]
    rows = [
        (
            LANGUAGE_NAMES.get(name, name),
            f"{measured[name]['nats']:.2f}",
            f"{measured[name]['bits']:.2f}",
            f"{measured[name]['n_token']:,}",
        )
        for name in sorted(measured, key=lambda name: (name.startswith("code"), name))
    ]
    return _rows(("held-out text", "nats per token", "bits per byte", "tokens"), rows)


def _copying(found: Mapping[str, Any]) -> str:
    uniform = math.log(found["vocabulary"])
    rows = [
        (
            period,
            f"{got['first']:.2f}",
            f"{got['second']:.2f}",
            f"{uniform - got['second']:.2f}",
            f"{got['accuracy']:.0%}",
        )
        for period, got in found["copying"].items()
    ]
    below = f"below a uniform guess ({uniform:.2f})"
    return _rows(("tokens", "first copy", "second copy", below, "right"), rows)


def _heads(found: Mapping[str, Any]) -> str:
    names = ("induction", "previous", "duplicate")
    scores = [found["scores"][name] for name in names]
    english = found["english"]
    rows = []
    for layer, effects in enumerate(found["text_effect"]):
        for head, effect in enumerate(effects):
            cells = [f"{score[layer][head]:.2f}" for score in scores]
            text = f"{effect:+.3f} ({effect / english:+.1%})"
            copy = f"{found['copy_effect'][layer][head]:+.2f}"
            rows.append((f"L{layer}H{head}", *cells, text, copy))
    return _rows(("head", *names, "English loss without it", "second copy without it"), rows)


def _groups(found: Mapping[str, Any]) -> str:
    rows = [
        (name, ", ".join(got["heads"]), f"{got['text']:+.2f}", f"{got['copy']:+.2f}")
        for name, got in found["groups"].items()
    ]
    return _rows(("removed together", "heads", "English loss", "second copy"), rows)


def _samples(found: Mapping[str, Any]) -> str:
    rows = [
        (_quoted(one["prompt"]), _quoted(one["text"]), one["loop"] or "")
        for one in found["samples"]
    ]
    return _rows(("prompt", "40 likeliest tokens", "loop of"), rows)


def _quoted(text: str) -> str:
    shown = text.replace("\n", "⏎").replace("|", "\\|").replace("`", "'").replace("\ufffd", "�")
    return f"`{shown}`"


def _curve(found: Mapping[str, Any]) -> str:
    log = found["log"]
    keys = ("step", "tokens", "first", "second", "induction", "previous")
    languages = [name for name in log[0] if name in LANGUAGE_NAMES]
    rows = [
        [f"{row[key]:,}" if isinstance(row[key], int) else row[key] for key in (*keys, *languages)]
        for row in log
    ]
    return _rows((*keys, *languages), rows)


def _phases(found: Mapping[str, Any]) -> str:
    keys = ("first", "second", "induction", "previous", "en")
    rows = [(name, *(f"{got[key]:.2f}" for key in keys)) for name, got in found["phases"].items()]
    names = ("first copy", "second copy", "induction", "previous", "English, bits per byte")
    return _rows(("revision", *names), rows)


def _files(found: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{facts['bytes']:,}", f"`{facts['sha256']}`")
        for name, facts in found["files"].items()
    ]
    return _rows(("file", "bytes", "SHA-256"), rows)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "copying": _copying,
    "curve": _curve,
    "files": _files,
    "groups": _groups,
    "heads": _heads,
    "languages": _languages,
    "phases": _phases,
    "samples": _samples,
}
