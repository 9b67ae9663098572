"""``ttmoe predict --ray``: files answered by processes on a cluster, through Ray Data.

What Ray Data hands around are pieces of the files, a few numbers each. A process reads its piece as the command without
``--ray`` would, so that texts stay as they are (Ray's own readers guess types, and give one file to one process), and
writes its answers under the piece's number: names in order are rows in order, and a piece that is done again after a
process died replaces the same file.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from rich.console import Console

from cluster.local import ray_session
from orchestrator.predict.answers import answer_schema, to_table
from orchestrator.predict.files import answer_chunk
from orchestrator.predict.input_columns import InputColumns
from orchestrator.predict.readers import FileChunk, find_files
from orchestrator.predict.routed_model import RegisteredRouter, open_router, print_line
from orchestrator.predict.scan import CHUNK_ROWS, FileScan, scan_files
from orchestrator.predict.sizing import PoolSize, choose_pool_size
from orchestrator.predict.throughput import ThroughputDisplay
from ttmoe.errors import InputError, WorkFailedError
from ttmoe.expert_files import write_whole

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel

ROWS_AT_MOST = 16384
"""Rows of one file of answers; fewer where there would not be several files for each process."""
_FILE, _OURS = "part-{:06}.parquet", "part-*.parquet"
_FIELDS = ("number", "path", "form", "offset", "lines", "rows")  # of a piece, as it is handed around
_HERE, _AGAIN = "predict --ray", "nothing was written; type the command again"
_SHARES = 4  # pieces for each process: one that is slower then does not keep the others waiting


def predict_on_ray(
    root: Path,
    library: str | None,
    pattern: str,
    columns: InputColumns,
    out: Path,
    force: bool,
    batch_size: int,
    device: str,
    workers: int | None,
    gpus: float | None,
    messages: Console,
) -> None:
    """Answer every row into Parquet files in the folder ``out``, which appears when all is done.

    Input, ``out``, the library's folder and the base must lie where every node finds them under the same path. Raises
    InputError before work starts where something is wrong with them, WorkFailedError where the work fails.
    """
    files = find_files(pattern)
    check_folder(out, force)
    router = open_router(root, library, device, messages)
    found = scan_files(files, columns)
    part = out.resolve().with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with ray_session():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        pool = choose_pool_size(nodes, -(-found.rows // CHUNK_ROWS), device, workers, gpus)
        pieces = found.pieces(min(ROWS_AT_MOST, max(CHUNK_ROWS, found.rows // (pool.workers * _SHARES))))
        print_line(messages, f"{found.rows:,} rows; pieces: {len(pieces)}; processes: {pool.workers} ({pool.device})")
        try:
            part.mkdir()
            with ThroughputDisplay(messages, found.rows) as meter:
                _answer(pieces, pool, _Work(router, columns, found, part, batch_size, pool.device), meter)
            _put_in_place(part, out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    print_line(messages, f"wrote {out}; its Parquet files are in the order of the rows: {len(pieces)}")


def check_folder(out: Path, force: bool) -> None:
    """Raises InputError where ``out`` is no folder for answers: a file, or holding what ``force`` would not replace."""
    if out.exists() and not out.is_dir():
        raise InputError("it is a file; the answers are a folder of files", where=str(out), fix="name another --out")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there - {path.name for path in out.glob(_OURS)}:
        raise InputError("the folder holds other files", where=str(out), fix="name another --out")
    if there and not force:
        raise InputError("the folder is not empty", where=str(out), fix="name another, or replace it with --force")
    if not out.parent.is_dir():
        raise InputError("its folder is not there", where=str(out), fix="make the folder, or name another --out")


class _Work:
    """What every process is told."""

    def __init__(
        self, router: RegisteredRouter, columns: InputColumns, found: FileScan, part: Path, batch_size: int, device: str
    ) -> None:
        base = replace(router.base, folder=str(Path(router.base.folder).resolve()))
        self.router = RegisteredRouter(router.folder.resolve(), base)  # a process stands in another folder
        self.columns, self.part, self.batch_size = columns, part, batch_size
        self.schema, self.nested, self.device = answer_schema(found), found.nested, device


class _Process:
    """Loads the model once, and answers piece after piece."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.model: RoutedModel | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One piece: how many rows it has, or what went wrong. (Ray Data would hand on an exception as a text.)"""
        work = self.work
        number, path, form, *numbers = (batch[name][0] for name in _FIELDS)
        piece = FileChunk(str(path), str(form), *map(int, numbers))
        try:
            self.model = self.model or work.router.load(work.device)
            rows = answer_chunk(self.model, piece, work.columns, work.batch_size)
            write_whole(work.part / _FILE.format(int(number)), _parquet(to_table(rows, work.schema, work.nested)))
        except InputError as error:
            return {"rows": [0], "fault": [pickle.dumps(error)]}
        except Exception as error:
            logging.exception("piece %s of %s", number, path)  # into the log that Ray keeps of this process
            what = f"a process failed: {type(error).__name__}: {error}"
            return {"rows": [0], "fault": [pickle.dumps(WorkFailedError(what, where=_HERE, fix=_AGAIN))]}
        return {"rows": [len(rows)], "fault": [b""]}


def _parquet(table: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _answer(pieces: list[FileChunk], pool: PoolSize, work: _Work, meter: ThroughputDisplay) -> None:
    """Have every piece answered; what each came to is counted as it comes."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the meter tells how far it is, an exception the rest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray Data warns of settings that it makes itself
        ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"number": number, **asdict(piece)} for number, piece in enumerate(pieces)]
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Process,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    try:
        for done in data.iter_rows():
            if done["fault"]:
                raise pickle.loads(done["fault"])
            meter.advance(int(done["rows"]))
    except ray.exceptions.RayError as error:
        what = f"Ray gave up: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        raise WorkFailedError(what, where=_HERE, fix=_AGAIN) from error


def _put_in_place(part: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
