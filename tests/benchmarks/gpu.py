"""Row ``gpu``: everything that runs on one GPU, in one command without network, on bases with random weights.

A part that fails is a line of the table, and the others run. Without a GPU every line says "not run"; the tests run all
of it on a CPU, on tiny bases.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import layer, models, routed
from tests.benchmarks.machine import ROOT, peak_bytes
from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.random_bases import LLAMA_1B, LLAMA_3B, LLAMA_8B, LLAMA_22M, RandomBase, plain_copy, tokenizer
from tests.benchmarks.table import Finding, at_least, at_most
from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.encoding import pool
from workers.training.gradients import activation_checkpointing
from workers.training.graphs import make_graphs
from workers.training.loop import fit_experts
from workers.training.memory import CUDA_CONTEXT_BYTES, estimate_job_memory
from workers.training.session import TrainingSession
from workers.training.settings import TrainSettings
from workers.training.state import ExpertTraining

SPEC, CLASSES = AdapterSpec(targets=("q", "v"), rank=8), 4


@dataclass(frozen=True)
class Scale:
    """How large the parts are.

    Attributes:
        device: Where they run.
        bases: The bases, smallest first.
        rows: Rows in a step, and
        tokens: tokens in a row, of the parts that compare steps: with a large base, enough to fill a GPU.
        short: Tokens in short rows, from and to; a step has four times as many of them.
        experts: How many train together.
        steps: How many steps each of them takes.
        loaded: How many are loaded, of mixed batches and routed answers.
        seconds: How long two subjects take turns.
        dtype: Of the bases.
    """

    device: str = "cuda"
    bases: tuple[tuple[str, dict], ...] = (("22M", LLAMA_22M), ("1B", LLAMA_1B), ("3B", LLAMA_3B), ("8B", LLAMA_8B))
    tokens: int = 512
    rows: int = 8
    short: tuple[int, int] = (16, 48)
    experts: int = 8
    steps: int = 20
    loaded: int = 256
    seconds: float = 4.0
    dtype: str = "bfloat16"

    def base(self, index: int) -> RandomBase:
        name, config = self.bases[min(index, len(self.bases) - 1)]
        return RandomBase(f"Llama {name}", config, self.device, self.dtype)


def run(scale: Scale = Scale()) -> Iterator[Finding]:
    for part in PARTS:
        name = (part.__doc__ or "").rstrip(".")
        if scale.device == "cuda" and not torch.cuda.is_available():
            yield Finding(name, "not run", "no GPU here", "")
            continue
        try:
            yield from part(scale)
        except Exception as error:
            traceback.print_exc()
            yield Finding(name, "failed", f"{type(error).__name__}: {str(error)[:100]}", "", "", False)
        gc.collect()
        _empty_cache()


def contraction(scale: Scale) -> Iterator[Finding]:
    """The update of a layer against the core-by-core contraction, with kernel counts."""
    yield from layer.measure_on(scale.device, seconds=scale.seconds / 8)


def host_waits(scale: Scale) -> Iterator[Finding]:
    """How often the host waits for the GPU in a step."""
    base, steps = scale.base(1), 6
    for experts, lengths in ((1, (scale.tokens, scale.tokens)), (scale.experts, scale.short)):
        session = _session(base, scale, experts, scale.rows, lengths)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            _watch_waits(True)
            try:
                for _ in range(steps):
                    session.step()
            finally:
                _watch_waits(False)
        waits = [each for each in seen if "called a synchronizing" in str(each.message)]
        places = sorted({f"{each.filename.rpartition('/')[2]}:{each.lineno}" for each in waits})
        yield Finding(f"host waits in {steps} steps, {experts} experts, {base.name}", f"{len(waits)}",
                      ", ".join(places), "", "0", not waits)  # fmt: skip


def graphs(scale: Scale) -> Iterator[Finding]:
    """A step from CUDA graphs against the same step issued kernel by kernel."""
    for index in (0, 1):
        base = scale.base(index)
        length = scale.short[1]
        recorded = _session(base, scale, 1, scale.rows * 4, (length, length))
        issued = _session(base, scale, 1, scale.rows * 4, (length, length))
        issued.graphs = None
        times = interleave({"graphs": _repeated(recorded.step, 10), "issued": _repeated(issued.step, 10)},
                           seconds=scale.seconds, rounds=(3, 30))  # fmt: skip
        yield Finding(f"training step from CUDA graphs, {base.name}, {scale.rows * 4} x {length} tokens "
                      f"({times.spread('graphs', 'issued')})", duration(times.median("graphs") / 10),
                      f"issued kernel by kernel {duration(times.median('issued') / 10)}",
                      f"{times.ratio('issued', 'graphs'):.1f} times faster")  # fmt: skip


def steps(scale: Scale) -> Iterator[Finding]:
    """A training step against PEFT LoRA of rank 16 and against the bare base."""
    for index in range(len(scale.bases)):
        base = scale.base(index)
        # A base of an encoder's size reads rows of such a size.
        rows, tokens = (scale.rows, scale.tokens) if index else (scale.rows * 4, scale.short[1])
        session = _session(base, scale, 1, rows, (tokens, tokens))
        body = session.bank.model
        inputs = _random_inputs(base, rows, tokens)
        subjects = {
            "ours": session.step,
            "peft": _peft_step(plain_copy(_unwrapped(body)), inputs, fp32=True),
            "peft16": _peft_step(plain_copy(_unwrapped(body)), inputs, fp32=False),
            "bare": _bare_step(plain_copy(_unwrapped(body)), inputs),
        }
        for step in subjects.values():
            step()
        launches = {name: layer.launches(step) for name, step in subjects.items() if name != "peft16"}
        times = interleave({name: _repeated(step, 3) for name, step in subjects.items()}, seconds=scale.seconds,
                           rounds=(3, 30))  # fmt: skip
        what = f"training step, {base.name}, {rows} x {tokens} tokens, {scale.dtype}, q and v, TT rank 8"
        mine = f"{duration(times.median('ours') / 3)}, {launches['ours']} kernels"
        for peer, text, limit in (("peft", "PEFT LoRA 16", 1.0), ("peft16", "PEFT LoRA 16, its weights in bf16", None),
                                  ("bare", "bare base, forward and input-backward", 1.05)):  # fmt: skip
            ratio, kernels = times.ratio("ours", peer), f", {launches[peer]} kernels" if peer in launches else ""
            cells = at_most(ratio, limit) if limit else (f"{ratio:.2f}", "", None)
            yield Finding(f"{what} ({times.spread('ours', peer)})", mine,
                          f"{text} {duration(times.median(peer) / 3)}{kernels}", *cells)  # fmt: skip
        flops = 4 * rows * tokens * sum(p.numel() for p in body.parameters() if p.ndim == 2)
        rate = flops / (times.median("ours") / 3)
        limit_rate = _matmul_rate(scale)
        yield Finding(f"{what}: products with weights", f"{rate / 1e12:.3g} TFLOP/s",
                      f"a square product {limit_rate / 1e12:.3g} TFLOP/s", f"{rate / limit_rate:.2f}")  # fmt: skip
        del session, body, subjects
        gc.collect()
        _empty_cache()


def together(scale: Scale) -> Iterator[Finding]:
    """Experts that train together against one after another."""
    short, long = (scale.rows * 4, scale.short), (scale.rows, (scale.tokens // 2, scale.tokens))
    for index, (rows, lengths) in ((0, short), (1, short), (1, long)):
        base = scale.base(index)
        bank = Bank(base.body(), "last")
        seconds, tokens = {}, [0, 0]
        for name in ("warm-up", "together", "alone"):
            seconds[name] = 0.0
            sizes = [scale.experts] if name == "together" else [1] * (1 if name == "warm-up" else scale.experts)
            for number, size in enumerate(sizes):
                trainings = _trainings(bank, base, scale, size, rows, lengths, scale.steps, seed=number)
                began = time.perf_counter()
                outcomes = fit_experts(bank, trainings, pad_id=0, report=lambda progress: None)
                _synchronize()
                seconds[name] += time.perf_counter() - began
                if name == "together":
                    tokens = [sum(fit.tokens[i] for fit in outcomes.values()) for i in range(2)]  # type: ignore[union-attr]
                for training in trainings:
                    bank.remove(training.name)
        what = (f"{scale.experts} experts on {base.name}, {scale.steps} steps of {rows} rows of {lengths[0]} to "
                f"{lengths[1]} tokens each")  # fmt: skip
        yield Finding(f"{what}: together against one after another", duration(seconds["together"]),
                      duration(seconds["alone"]), *at_least(seconds["alone"] / seconds["together"], 3.0))  # fmt: skip
        real, processed = (count / seconds["together"] for count in tokens)
        yield Finding(f"{what}: real tokens a second", f"{real:,.0f}", f"processed {processed:,.0f}",
                      f"{real / processed:.2f}")  # fmt: skip


def mixed(scale: Scale) -> Iterator[Finding]:
    """Mixed batches over many loaded experts against one expert for all rows."""
    base = scale.base(1)
    bank = Bank(base.body(), "last").eval()
    for i in range(scale.loaded):
        bank.attach(f"e{i}", models.drawn_expert(bank, CLASSES, seed=i, spec=SPEC))
    for rows in (32, scale.loaded):
        inputs = _random_inputs(base, rows, 64)
        for count in sorted({min(8, rows), rows}):
            names = [f"e{(i % count) * scale.loaded // count}" for i in range(rows)]
            subjects = {"one": lambda inputs=inputs: bank(inputs, "e0"),
                        "many": lambda inputs=inputs, names=names: bank(inputs, names)}  # fmt: skip
            with torch.inference_mode():
                times = interleave(subjects, seconds=scale.seconds / 2, rounds=(5, 50), warm=2)
            what = f"{rows} rows of 64 tokens over {count} of {scale.loaded} loaded experts, {base.name}, forward"
            yield Finding(f"{what} ({times.spread('many', 'one')})", duration(times.median("many")),
                          f"one expert for all rows {duration(times.median('one'))}",
                          *at_most(times.ratio("many", "one"), 1.10))  # fmt: skip


def one_pass(scale: Scale) -> Iterator[Finding]:
    """Routed answers in one pass against a lone expert that was told the task."""
    base = scale.base(1)
    depth = base.config["num_hidden_layers"]
    frame = routed.Frame(base.body, base.described(128), tokenizer(routed.WORDS.split()), depth * 2 // 3)
    yield from routed.compare(frame, "one pass", loaded=(2, scale.loaded), batches=(1, 32), seconds=scale.seconds / 2)


def memory(scale: Scale) -> Iterator[Finding]:
    """Peak memory of a training step against the forecast."""
    base = scale.base(-1)
    for recomputes, rows in ((False, scale.rows), (True, scale.rows * 4)):
        _empty_cache(reset=True)
        session = _session(base, scale, 1, rows, (scale.tokens, scale.tokens), recomputes=recomputes)
        settings = session.active[0].settings
        with activation_checkpointing(session.bank.model, recomputes):
            for _ in range(3):
                session.step()
        peak = _peak(scale.device)
        forecast = estimate_job_memory(session.bank.model, base.described(scale.tokens), SPEC, CLASSES, settings,
                                       device=scale.device)  # fmt: skip
        expected = forecast.gpu if scale.device == "cuda" else forecast.total
        kept = "layers recomputed" if recomputes else "layers kept"
        yield Finding(f"peak memory of a step, {base.name}, {rows} x {scale.tokens} tokens, {kept}",
                      f"{peak / 1e9:.1f} GB", f"forecast {expected / 1e9:.1f} GB", f"{peak / expected:.2f}",
                      "0.75 to 1.00", 0.75 <= round(peak / expected, 2) <= 1.0)  # fmt: skip
        del session
        gc.collect()


_LOAD = """
import json, sys, torch
import workers.training.loop, transformers.models.llama.modeling_llama
from tests.benchmarks.machine import ROOT, peak_bytes
from ttmoe.base import Base, load_body
model = load_body(Base("folder", "llama", "", "0" * 64, sys.argv[1], sys.argv[2], 128, "last"), sys.argv[3])
with torch.no_grad():
    model(input_ids=torch.ones(1, 128, dtype=torch.long, device=sys.argv[3]))
weights, taken = sum(p.numel() * p.element_size() for p in model.parameters()), 0
if sys.argv[3] == "cuda":
    free, whole = torch.cuda.mem_get_info()
    taken = whole - free - torch.cuda.memory_reserved()
print(json.dumps({"host": peak_bytes(), "weights": weights, "context": taken}))
"""


def loading(scale: Scale) -> Iterator[Finding]:
    """Host memory of a process that loads a base, against the forecast; without Ray."""
    base = scale.base(1)
    with tempfile.TemporaryDirectory() as scratch:
        body = base.body()
        estimate = estimate_job_memory(body, base.described(128), SPEC, CLASSES, TrainSettings(), device=scale.device)
        body.save_pretrained(scratch, max_shard_size="500MB")
        del body
        gc.collect()
        _empty_cache()
        command = [sys.executable, "-c", _LOAD, scratch, scale.dtype, scale.device]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = json.loads(done.splitlines()[-1])
    yield Finding(f"peak host memory of a process that loads {base.name} ({found['weights'] / 1e9:.2f} GB of weights)",
                  f"{found['host'] / 1e9:.2f} GB", f"forecast {estimate.host / 1e9:.2f} GB",
                  *at_most(found["host"] / estimate.host, 1.0))  # fmt: skip
    yield Finding("GPU memory of a process beside its tensors", f"{found['context'] / 1e9:.2f} GB",
                  f"forecast {CUDA_CONTEXT_BYTES / 1e9:.2f} GB", "")  # fmt: skip


def compiled(scale: Scale) -> Iterator[Finding]:
    """A step whose layers are compiled against the same step as it is."""
    for index in (1, len(scale.bases) - 1):
        base = scale.base(index)
        plain = _session(base, scale, 1, scale.rows, (scale.tokens, scale.tokens))
        bank = plain.bank
        times: dict[str, float] = {"plain": _seconds(plain.step)}
        for block in bank.model.layers:  # type: ignore[union-attr]
            block.compile()
        plain.graphs = make_graphs(bank.model, bank.device)
        first = _seconds(plain.step, 1, warm=0)
        times["compiled"] = _seconds(plain.step)
        what = f"training step with compiled layers, {base.name}, {scale.rows} x {scale.tokens} tokens"
        yield Finding(f"{what}; the first takes {duration(first)}", duration(times["compiled"]),
                      f"not compiled {duration(times['plain'])}",
                      f"{times['compiled'] / times['plain']:.2f}")  # fmt: skip
        del plain, bank
        gc.collect()
        _empty_cache()


Part = Callable[[Scale], Iterator[Finding]]
PARTS: Sequence[Part] = (
    host_waits, graphs, steps, together, memory, loading, mixed, one_pass, contraction, compiled,
)  # fmt: skip


def _trainings(bank: Bank, base: RandomBase, scale: Scale, experts: int, rows: int, lengths: tuple[int, int],
               steps: int, *, recomputes: bool = False, seed: int = 0) -> list[ExpertTraining]:  # fmt: skip
    settings = TrainSettings(steps=steps, batch_size=rows, eval_every=steps, seed=seed, micro_batch=None,
                             checkpointing=recomputes)  # fmt: skip
    data = base.rows(rows * 8, lengths, CLASSES, seed)
    trainings = []
    for i in range(experts):
        bank.add(f"e{i}", SPEC, CLASSES, torch.Generator().manual_seed(i))
        own = settings.model_copy(update={"seed": seed + i})
        trainings.append(ExpertTraining(f"e{i}", data, data.first(rows), own, "trained"))
    return trainings


def _session(base: RandomBase, scale: Scale, experts: int, rows: int, lengths: tuple[int, int], *,
             recomputes: bool = False) -> TrainingSession:  # fmt: skip
    """The product's own loop over a new bank, after a warm-up step; each ``step`` takes one more."""
    bank = Bank(base.body(), "last")
    session = TrainingSession(bank, 0, lambda progress: None)
    session.start(_trainings(bank, base, scale, experts, rows, lengths, 10_000, recomputes=recomputes))
    if session.outcomes:
        raise RuntimeError(f"an expert failed: {session.outcomes}")
    bank.train()
    with activation_checkpointing(bank.model, recomputes):
        session.step()
    return session


def _random_inputs(base: RandomBase, rows: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(3, base.config["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(base.device), "attention_mask": torch.ones_like(ids).to(base.device)}


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model without the layers of the bank."""
    copied = plain_copy(model)
    for name, module in list(copied.named_modules()):
        if hasattr(module, "inner"):
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, module.inner)
    return copied


def _peft_step(model: nn.Module, inputs: dict[str, Tensor], *, fp32: bool) -> Callable[[], None]:
    """PEFT's LoRA with the same head on the last token, the same clipping and the same optimizer."""
    device = inputs["input_ids"].device
    model = models.peft_lora(model, ["expert"], fp32=fp32).train()
    head = nn.Linear(model.config.hidden_size, CLASSES, device=device)  # type: ignore[union-attr, arg-type]
    trained = [*(p for p in model.parameters() if p.requires_grad), *head.parameters()]
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=fused, foreach=not fused)
    labels = torch.arange(len(inputs["input_ids"]), device=device) % CLASSES

    def step() -> None:
        optimizer.zero_grad()
        states = pool(model(**inputs).last_hidden_state, inputs["attention_mask"], "last")
        F.cross_entropy(head(states), labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return step


def _bare_step(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], None]:
    """The limit: forward, and backward down to the embeddings, with nothing to train."""
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()  # type: ignore[operator]

    def step() -> None:
        states = model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).last_hidden_state
        torch.autograd.grad(pool(states, inputs["attention_mask"], "last").sum(), embedded)

    return step


def _repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    """Several steps in a row, so that the host may run ahead of the GPU as it does in a training."""

    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def _seconds(step: Callable[[], None], times: int = 10, *, warm: int = 4) -> float:
    """Seconds of a step, of several in a row."""
    _repeated(step, warm)()
    _synchronize()
    began = time.perf_counter()
    _repeated(step, times)()
    _synchronize()
    return (time.perf_counter() - began) / times


def _matmul_rate(scale: Scale) -> float:
    """Operations a second of a large square product of random numbers."""
    size = 8192 if scale.device == "cuda" else 64
    left, right = (torch.randn(size, size, device=scale.device, dtype=getattr(torch, scale.dtype)) for _ in range(2))
    times = interleave({"product": _repeated(lambda: left @ right, 10)}, seconds=0.5, rounds=(3, 20), warm=2)
    return 2 * size**3 * 10 / times.median("product")


def _watch_waits(on: bool) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn" if on else "default")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _empty_cache(*, reset: bool = False) -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int:
    """Bytes of GPU memory that the process has taken, its context included; on a CPU, of the process at its peak."""
    if device != "cuda":
        return peak_bytes()
    free, whole = torch.cuda.mem_get_info()
    return whole - free
