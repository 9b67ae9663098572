"""What ``ttmoe predict`` was asked: which of its forms, and whether the options go with it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.predict.input_columns import InputColumns
from ttmoe.errors import InputError


@dataclass(frozen=True)
class PredictRequest:
    """The command's arguments and options."""

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

    @property
    def columns(self) -> InputColumns:
        """The columns that were named."""
        return InputColumns(self.text, self.second, self.choices)

    def check(self) -> None:
        """Raises InputError for options that do not go together."""
        if self.file is not None and self.texts:
            raise InputError("texts and a file were given", where="predict", fix="give one of them")
        needing_file = {"--out": self.out, "--force": self.force, "--ray": self.on_ray}
        needing_ray = {"--workers": self.workers, "--gpus-per-worker": self.gpus}
        needing_rows = {"--text": self.text, "--second": self.second, "--choices": self.choices}
        plain = bool(self.texts) and self.texts != ("-",)
        for needing, lacking, fix in (
            (needing_file, self.file is None, "give --file"),
            (needing_ray, not self.on_ray, "give --ray"),
            (needing_rows, plain, "texts have no columns: write lines of JSON to standard input, or give --file"),
        ):
            given = [option for option, value in needing.items() if value or (value == 0 and value is not False)]
            if given and lacking:
                raise InputError(f"{given[0]} has no meaning here", where="predict", fix=fix)
        if self.on_ray and self.out is None:
            raise InputError("--ray writes a folder", where="predict", fix="name it: --out FOLDER")


def run_request(root: Path, library: str | None, request: PredictRequest) -> None:
    """Do what was asked. Raises InputError as each form does."""
    request.check()
    console, messages = Console(), Console(stderr=True)
    size, device = request.batch_size, request.device
    if request.file is not None and request.on_ray and request.out is not None:
        from orchestrator.predict.ray_data import predict_on_ray

        predict_on_ray(root, library, request.file, request.columns, request.out, request.force, size, device,
                       request.workers, request.gpus, messages)  # fmt: skip
    elif request.file is not None:
        from orchestrator.predict.files import predict_files

        predict_files(root, library, request.file, request.columns, request.out, request.force, size, device, messages)
    elif request.texts and request.texts != ("-",):
        from orchestrator.predict.texts import predict_texts

        predict_texts(root, library, request.texts, request.as_json, size, device, console, messages)
    else:
        from orchestrator.predict.stream import predict_stream

        predict_stream(root, library, request.columns, size, device, sys.stdin, bool(request.texts), messages)
