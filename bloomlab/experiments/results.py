"""Results of a study in a folder: rows are stored as they come, so that a killed study goes on.

`run.json` holds what is needed to repeat the study (see `identity`); rows lie in Parquet files. A
file is written under another name, flushed to the disk and then renamed, so that it is there whole
or not at all, whenever the process is killed.
"""

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bloomlab.errors import ResultsError
from bloomlab.experiments.identity import study

RUN = "run.json"
PARTS = "rows-*.parquet"
FIRST = "rows-00000000.parquet"  # all rows of a study that came to its end
Key = tuple[Any, ...]
log = logging.getLogger("bloomlab")


class Results:
    """The rows of one study, in a folder of its own; made, or opened to go on.

    One process writes at a time. As a context manager it joins all rows into one file at the end.

    Args:
        folder: where; new, empty, or written by this same study.
        model: what is studied.
        data: the examples; a Dataset, or several by name.
        arguments: all else that decides the rows; see `identity.plain`.
        seed: of all that is drawn.
        key: columns that tell rows apart.

    Raises:
        ResultsError: the folder belongs to another model, data, arguments, seed, code or version
            (says what differs), holds something else, or cannot be read.
        InputError: an argument that cannot be stored.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: Any,
        data: Any,
        arguments: Mapping[str, Any],
        seed: int = 0,
        key: Sequence[str],
    ) -> None:
        self.folder, self.key = Path(folder).expanduser(), tuple(key)
        wanted = study(model=model, data=data, arguments=arguments, seed=seed)
        wanted["key"] = list(self.key)
        # what JSON makes of it, so that it compares with what is read
        self.run: dict[str, Any] = json.loads(json.dumps(wanted))
        self._settled: dict[str, Any] = {}
        self._enter()
        table = _table(self.folder)
        self._rows = {} if table is None else self._by_key(table.to_pylist())
        threads = torch.get_num_threads()
        if (before := self.settled("threads", threads)) != threads:
            log.warning(
                "%s was begun with %d threads, torch has %d: new rows may differ in their last "
                "bits. torch.set_num_threads(%d) avoids it.",
                *(self.folder, before, threads, before),
            )

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.join()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def frame(self) -> pd.DataFrame:
        """All rows, in the order in which they came."""
        return read_results(self.folder)

    def done(self, *key: Any) -> bool:
        """Whether there is a row of this key."""
        return key in self._rows

    def row(self, *key: Any) -> dict[str, Any]:
        """The row of a key.

        Raises:
            KeyError: there is none.
        """
        return self._rows[key]

    def append(self, row: Mapping[str, Any]) -> None:
        """Store a row; it is on the disk when this returns."""
        name = f"rows-{len(self._rows) + 1:08d}-{secrets.token_hex(4)}.parquet"
        table = pa.Table.from_pylist([dict(row)])
        _replace(self.folder / name, lambda file: pq.write_table(table, file))
        self._rows |= self._by_key([dict(row)])

    def settled(self, name: str, value: Any) -> Any:
        """A value that the first run decided, such as a batch size; later ones get that."""
        if name not in self._settled:
            self._settled[name] = value
            self._write_run()
        return self._settled[name]

    def join(self) -> None:
        """Join the files of all rows into one."""
        parts = sorted(self.folder.glob(PARTS))
        if len(parts) > 1 and (table := _table(self.folder)) is not None:
            kept = pd.DataFrame(table.select(self.key).to_pylist()).duplicated().to_numpy()
            table = table.filter(pa.array(~kept))
            _replace(self.folder / FIRST, lambda file: pq.write_table(table, file))
            for part in parts:
                if part.name != FIRST:
                    part.unlink(missing_ok=True)

    def _by_key(self, rows: list[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
        return {tuple(row[name] for name in self.key): row for row in rows}

    def _enter(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ResultsError(f"{self.folder} is a file, expected a folder. {self._another()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.tmp"):
            if not psutil.pid_exists(int(left.name.split(".")[-2])):
                left.unlink(missing_ok=True)
        if not (self.folder / RUN).exists():
            if found := sorted(f.name for f in self.folder.iterdir() if f.suffix != ".tmp"):
                raise ResultsError(
                    f"{self.folder} holds {found[0]} but no {RUN}: it is no results folder. "
                    f"{self._another()}"
                )
            self._write_run()
            return
        before = read_run(self.folder)
        self._settled = before.pop("settled", {})
        if told := "; ".join(_differences(before, self.run)):
            raise ResultsError(
                f"the results in {self.folder} are of another study: {told}. Their rows and new "
                f"ones must not be mixed. Give back what differs, or take another folder. "
                f"{self._another()} read_results({str(self.folder)!r}) reads the old rows."
            )

    def _write_run(self) -> None:
        text = json.dumps(self.run | {"settled": self._settled}, indent=1)
        _replace(self.folder / RUN, lambda file: file.write(text.encode()))

    def _another(self) -> str:
        number = 2
        while (new := self.folder.with_name(f"{self.folder.name}-{number}")).exists():
            number += 1
        return f"{str(new)!r} is free."


def opened(folder: str | Path | None, **options: Any) -> AbstractContextManager[Results | None]:
    """`Results` in a folder, or None: nothing is stored."""
    return nullcontext() if folder is None else Results(folder, **options)


def read_results(folder: str | Path) -> pd.DataFrame:
    """The rows in a results folder, of whatever study, in the order in which they came.

    Raises:
        ResultsError: no results folder, or a file that cannot be read.
    """
    key = read_run(folder)["key"]
    table = _table(Path(folder).expanduser())
    if table is None:
        return pd.DataFrame()
    return table.to_pandas().drop_duplicates(key, ignore_index=True)


def read_run(folder: str | Path) -> dict[str, Any]:
    """What the study in a results folder was: model, data, arguments, seed, versions, code.

    `arguments` are those of the function that wrote it: `prune_curve(model, data, **arguments)`.

    Raises:
        ResultsError: no results folder, or a file that cannot be read.
    """
    file = Path(folder).expanduser() / RUN
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultsError(f"no {RUN} in {file.parent}: it is no results folder.") from error
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file} cannot be read: {error}") from error
    if not isinstance(run, dict) or not {"arguments", "key", "model", "seed"} <= run.keys():
        raise ResultsError(f"{file} describes no study of bloomlab.")
    return run


def _table(folder: Path) -> pa.Table | None:
    tables = []
    for file in sorted(folder.glob(PARTS)):
        try:
            tables.append(pq.read_table(file))
        except (OSError, pa.ArrowException) as error:
            raise ResultsError(
                f"{file} cannot be read: {error}. Delete it; its rows will be computed again."
            ) from error
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def _replace(file: Path, write: Any) -> None:
    """Write a file under another name, to the disk, and rename it."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with scratch.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(scratch, file)


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two descriptions, by the names of the entries."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            found += _differences(before.get(key), now.get(key), inner)
        return found
    if json.dumps(before) == json.dumps(now):  # text: NaN equals itself
        return []
    return [f"{name} was {_short(before)}, is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:24]} ... {text[-12:]}"
