"""``ttmoe predict --ray``: answer the rows of files in worker processes on a cluster, through Ray Data.

A row of the Ray data set is a chunk of an input file: the file's path, an offset and a number of rows. A worker reads
its chunk with the same code as the command without ``--ray``, because Ray's own readers change texts by inferring
types and assign a whole file to one worker. It writes the answers to a Parquet file named by the number of the chunk,
so the rows keep their order when the files are read by name. If a worker process dies, Ray repeats its chunk, which
writes the same file again; an error inside a worker ends the command.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import ray
import ray.data
from rich.console import Console

from cluster.embedded import while_alive
from cluster.error import ClusterEndedError
from cluster.local import ray_session
from orchestrator.predict.answer_folder import AnswerFolder, check_folder, finish_ended_runs
from orchestrator.predict.files import answer_chunk
from orchestrator.predict.input_columns import InputColumns
from orchestrator.predict.messages import ThroughputDisplay, print_line
from orchestrator.predict.readers import FileChunk, find_files
from orchestrator.predict.request import PredictRequest
from orchestrator.predict.routed_model import RegisteredRouter, open_router
from orchestrator.predict.scan import CHUNK_ROWS, scan_files
from orchestrator.predict.sizing import PoolSize, choose_pool_size
from orchestrator.predict.writers import answer_schema, to_table
from ttmoe.errors import InfeasibleError, InputError, WorkFailedError
from workers.failure import to_failure

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel

MAX_FILE_ROWS = 16384
"""Rows of an output file; fewer if each worker would otherwise write fewer than ``_CHUNKS_PER_WORKER`` files."""
_CHUNKS_PER_WORKER = 4  # so that a slow worker does not keep the others waiting
_WHERE, _FIX = "predict --ray", "repeat the command; no answers were written or replaced"


@dataclass(frozen=True)
class _Job:
    """What every worker needs to answer a chunk; sent to it once. All paths are absolute."""

    router: RegisteredRouter
    columns: InputColumns
    folder: AnswerFolder
    batch_size: int
    device: str
    schema: pyarrow.Schema
    nested: frozenset[str]


class _Worker:
    """An actor of Ray Data: it loads the model at its first chunk, and then answers chunk after chunk."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.model: RoutedModel | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer one chunk; return its number of rows, and if it failed what ``_raise_error`` takes.

        Ray Data would turn a raised exception into text, and an exception of any class cannot be pickled.
        """
        job, (number,) = self.job, batch["number"]
        chunk = FileChunk(**{each.name: batch[each.name].tolist()[0] for each in fields(FileChunk)})
        try:
            self.model = self.model or job.router.load(job.device)
            rows = answer_chunk(self.model, chunk, job.columns, job.batch_size)
            sink = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(to_table(rows, job.schema, job.nested), sink)
            job.folder.write(int(number), sink.getvalue().to_pybytes())
        except InputError as error:
            return {"rows": [0], "error": [json.dumps([error.code, error.what, error.where, error.fix])]}
        except Exception as error:
            logging.exception("chunk %s of %s", number, chunk.path)  # goes to the log that Ray keeps for the worker
            what = f"a worker failed: {to_failure(error)}"
            return {"rows": [0], "error": [json.dumps([WorkFailedError.code, what, _WHERE, _FIX])]}
        return {"rows": [len(rows)], "error": [""]}


def predict_on_ray(request: PredictRequest, messages: Console) -> None:
    """Answer every row of ``request.file`` into Parquet files in the folder ``request.out``.

    The files appear, or are replaced, when all rows are answered; an existing folder stays. Input, output, library and
    base must have the same paths on every node.

    Raises:
        InputError: Before work starts, if a row cannot be answered or the folder cannot be written.
        InfeasibleError: If a worker fits on no node.
        WorkFailedError: If a worker fails, or the Ray that this command started ends.
    """
    files, out = (
        find_files(request.file or "", request.encoding, request.delimiter, request.quotes),
        request.out or Path(),
    )
    finish_ended_runs(out)
    check_folder(out, files, request.force)
    router = open_router(request, messages)
    scan = scan_files(files, request.columns)
    folder, created = AnswerFolder(out.resolve()), not out.exists()
    try:
        with ray_session():
            nodes = [node["Resources"] for node in while_alive(ray.nodes) if node["Alive"]]
            pool = choose_pool_size(nodes, -(-scan.rows // CHUNK_ROWS), request.device, request.workers, request.gpus)
            chunk_rows = max(CHUNK_ROWS, scan.rows // (pool.workers * _CHUNKS_PER_WORKER))
            chunks = scan.merge_chunks(min(MAX_FILE_ROWS, chunk_rows))
            print_line(messages, f"{scan.rows:,} rows; chunks: {len(chunks)}; workers: {pool.workers} ({pool.device})")
            # A worker has another working folder.
            base = replace(router.base, folder=str(Path(router.base.folder).resolve()))
            job = _Job(RegisteredRouter(router.folder.resolve(), base), request.columns, folder, request.batch_size,
                       pool.device, answer_schema(scan), scan.nested)  # fmt: skip
            out.mkdir(exist_ok=True)
            with ThroughputDisplay(messages, scan.rows) as display:
                while_alive(lambda: _answer_chunks(chunks, pool, job, display))
            folder.publish(len(chunks))
    except ClusterEndedError as error:
        fix = f"see whether its memory is exhausted (dmesg); {_FIX}"
        raise WorkFailedError(error.what, where=error.where, fix=fix) from error
    finally:
        folder.sweep(created)  # when no worker writes any more
    print_line(messages, f"wrote {out}; Parquet files in the order of the rows: {len(chunks)}")


def _raise_error(text: str) -> None:
    """Raise the error that a worker reports, as JSON: exit code, what is wrong, where, and what to do."""
    code, what, where, fix = json.loads(text)
    kind = next(kind for kind in (InputError, WorkFailedError, InfeasibleError) if kind.code == code)
    raise kind(what, where=where, fix=fix)


def _answer_chunks(chunks: list[FileChunk], pool: PoolSize, job: _Job, display: ThroughputDisplay) -> None:
    """Answer all chunks and advance the display; raise the first error that a worker reports."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the display and the exceptions are enough
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray Data warns about settings that it makes itself
        ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"number": number, **asdict(chunk)} for number, chunk in enumerate(chunks)]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Worker,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    try:
        for result in results.iter_rows():
            if result["error"]:
                _raise_error(result["error"])
            display.advance(int(result["rows"]))
    except ray.exceptions.RayError as error:
        what = f"Ray failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        raise WorkFailedError(what, where=_WHERE, fix=_FIX) from error
