"""The arguments of ``ttmoe predict``, and the choice of the function that answers them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.predict.input_columns import InputColumns
from ttmoe.errors import InputError


@dataclass(frozen=True)
class PredictRequest:
    """The arguments and options of one ``ttmoe predict`` command.

    Attributes:
        texts: Texts to answer. Empty or ``("-",)`` reads standard input.
        file: Path or glob pattern of the input files.
        out: Output file, or with ``on_ray`` the output folder. None prints lines of JSON.
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
        root: Folder that contains the runs.
    """

    texts: tuple[str, ...] = ()
    file: str | None = None
    out: Path | None = None
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
    root: Path = Path("runs")

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
        columns_fix = "give --file, or write lines of JSON to standard input"
        for option, given, allowed, needed, fix in (
            ("--out", self.out is not None, self.file is not None, "--file", ""),
            ("--force", self.force, self.file is not None, "--file", ""),
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


def run_request(request: PredictRequest) -> None:
    """Answer a request; print the answers, or write them to ``request.out``.

    Raises:
        InputError: If the options do not go together, or the input cannot be answered.
        WorkFailedError: If a process on Ray fails.
    """
    request.check()
    messages = Console(stderr=True)
    if request.on_ray:
        from orchestrator.predict.ray_data import predict_on_ray

        predict_on_ray(request, messages)
    elif request.file is not None:
        from orchestrator.predict.files import predict_files

        predict_files(request, messages)
    elif request.has_texts:
        from orchestrator.predict.texts import predict_texts

        predict_texts(request, Console(), messages)
    else:
        from orchestrator.predict.texts import predict_stream

        predict_stream(request, sys.stdin, messages)
