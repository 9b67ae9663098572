"""The arguments of ``ttmoe predict``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config.store_address import StoreAddress, find_store
from orchestrator.predict.input_columns import InputColumns
from ttmoe.errors import InputError
from workers.data.text_files import ENCODING_FIX, UTF_8, is_text_encoding


@dataclass(frozen=True)
class PredictRequest:
    """The arguments and options of one ``ttmoe predict`` command.

    Attributes:
        texts: Texts to answer. Empty or ``("-",)`` reads standard input.
        file: Path or glob pattern of the input files.
        out: Output file, or with ``on_ray`` the output folder. None prints lines of JSON.
        encoding: Encoding of the files. UTF-16 and UTF-32 are also read where it is UTF-8.
        delimiter: What separates the cells of CSV and TSV files; "" for comma and tab.
        quotes: Whether quotes enclose cells; None: in CSV, not in TSV.
        text: Column of the text.
        second: Column of the second text of a pair.
        choices: Column that holds lists of options, or one column for each option.
        as_json: Print lines of JSON instead of a table; applies to ``texts``.
        batch_size: Rows in a batch.
        device: ``auto``, ``cpu`` or ``cuda``.
        force: Replace an existing ``out``.
        on_ray: Answer the files on Ray.
        workers: Processes on Ray. None starts as many as fit.
        gpus: GPUs of each process on Ray; may be a fraction. None chooses by ``device`` and the cluster.
        library: Name of the library. None selects the one that ran last.
        store: The store that contains the library.
    """

    texts: tuple[str, ...] = ()
    file: str | None = None
    out: Path | None = None
    encoding: str = UTF_8
    delimiter: str = ""
    quotes: bool | None = None
    text: str | None = None
    second: str | None = None
    choices: tuple[str, ...] = ()
    as_json: bool = False
    batch_size: int = 64
    device: str = "auto"
    force: bool = False
    on_ray: bool = False
    workers: int | None = None
    gpus: float | None = None
    library: str | None = None
    store: StoreAddress = field(default_factory=find_store)

    @property
    def columns(self) -> InputColumns:
        """The columns to read from each row."""
        return InputColumns(self.text, self.second, self.choices)

    @property
    def has_texts(self) -> bool:
        """Whether the texts are arguments of the command."""
        return self.texts not in ((), ("-",))

    def check(self) -> None:
        """Raise InputError if the options do not go together."""
        if self.file is not None and self.texts:
            raise InputError("both texts and --file were given", where="predict", fix="give one of them")
        if not is_text_encoding(self.encoding):
            raise InputError(f"unknown encoding {self.encoding!r}", where="--encoding", fix=ENCODING_FIX)
        if len(self.delimiter) > 1:
            raise InputError(
                "a delimiter is one character", where="--delimiter", fix="write for example --delimiter ';'"
            )
        columns_fix = "give --file, or write lines of JSON to standard input"
        for option, given, allowed, needed, fix in (
            ("--out", self.out is not None, self.file is not None, "--file", ""),
            ("--force", self.force, self.file is not None, "--file", ""),
            ("--encoding", self.encoding != UTF_8, self.file is not None, "--file", ""),
            ("--delimiter", bool(self.delimiter), self.file is not None, "--file", ""),
            ("--quotes", self.quotes is not None, self.file is not None, "--file", ""),
            ("--ray", self.on_ray, self.file is not None, "--file", ""),
            ("--workers", self.workers is not None, self.on_ray, "--ray", ""),
            ("--gpus-per-worker", self.gpus is not None, self.on_ray, "--ray", ""),
            ("--text", bool(self.text), not self.has_texts, "rows with columns", columns_fix),
            ("--second", bool(self.second), not self.has_texts, "rows with columns", columns_fix),
            ("--choices", bool(self.choices), not self.has_texts, "rows with columns", columns_fix),
            ("--ray", self.on_ray, self.out is not None, "an output folder", "add --out FOLDER"),
        ):
            if given and not allowed:
                fix = fix or f"add {needed}, or remove {option}"
                raise InputError(f"{option} requires {needed}", where="predict", fix=fix)
