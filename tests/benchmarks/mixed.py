"""Row ``mixed``: a batch over many distinct experts against the same batch through one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.benchmarks import models
from tests.benchmarks.measuring import duration, interleave
from tests.benchmarks.table import Finding, at_most

LOADED, CLASSES, TOKENS = 256, 4, 64
FEW = 8  # experts of the peers that compute every one of them


def run() -> Iterator[Finding]:
    yield from _ours()
    yield from _adapter_names()
    for name, build in (("Arrow", _arrow), ("X-LoRA", _x_lora)):
        yield _every_expert(name, build)


def _ours() -> Iterator[Finding]:
    bank = models.bank().eval()
    for i in range(LOADED):
        bank.attach(f"e{i}", models.drawn_expert(bank, CLASSES, seed=i))
    for rows, counts, seconds in ((32, (1, 8, 32), 45.0), (128, (128,), 30.0)):
        inputs = models.batch(rows, TOKENS)

        def through(count: int, inputs: dict = inputs, rows: int = rows) -> Callable[[], object]:
            names = [f"e{(i % count) * LOADED // count}" for i in range(rows)]
            return torch.inference_mode()(lambda: bank(inputs, names))

        subjects = {"one": torch.inference_mode()(lambda inputs=inputs: bank(inputs, "e0"))}
        subjects |= {str(count): through(count) for count in counts}
        times = interleave(subjects, seconds=seconds, rounds=(5, 30))
        for count in counts:
            what = f"{rows} rows x {TOKENS} tokens over {count} of {LOADED} loaded experts, SmolLM2, forward"
            yield Finding(f"{what} ({times.spread(str(count), 'one')})", duration(times.median(str(count))),
                          f"one expert for all rows {duration(times.median('one'))}",
                          *at_most(times.ratio(str(count), "one"), 1.10))  # fmt: skip


def _adapter_names() -> Iterator[Finding]:
    rows, inputs = 32, models.batch(32, TOKENS)
    names = [f"e{i}" for i in range(rows)]
    model = models.peft_lora(models.body(), names).eval()
    subjects = {"one": torch.inference_mode()(lambda: model(**inputs))}
    for count in (8, 32):
        chosen = [names[i % count] for i in range(rows)]
        subjects[str(count)] = torch.inference_mode()(lambda chosen=chosen: model(**inputs, adapter_names=chosen))
    times = interleave(subjects, seconds=15, rounds=(3, 20))
    for count in ("8", "32"):
        yield Finding(f"beside it: PEFT adapter_names, {rows} rows over {count} of {rows} loaded", "",
                      f"{duration(times.median(count))}, one adapter {duration(times.median('one'))}",
                      f"{times.ratio(count, 'one'):.2f}")  # fmt: skip


def _every_expert(name: str, build: Callable[[Path], Callable[[], object]]) -> Finding:
    what = f"beside it: PEFT {name}, top 1 of {FEW} experts, 32 rows"
    with tempfile.TemporaryDirectory(dir=models.temporary()) as folder:
        try:
            routed = build(Path(folder))
        except Exception as error:  # a peer that does not run is a finding, not a failure of ours
            return Finding(what, "", f"not run, {type(error).__name__}: {str(error).splitlines()[0][:80]}", "")
        base, inputs = models.body().eval(), models.batch(32, TOKENS)
        bare = torch.inference_mode()(lambda: base(**inputs))
        times = interleave({"routed": torch.inference_mode()(routed), "bare": bare}, seconds=8, rounds=(3, 10))
    return Finding(what, "", f"{duration(times.median('routed'))}, bare base {duration(times.median('bare'))}",
                   f"{times.ratio('routed', 'bare'):.2f}")  # fmt: skip


def saved_adapters(folder: Path, count: int) -> list[str]:
    """Folders of PEFT LoRA adapters of SmolLM2."""
    names = [f"e{i}" for i in range(count)]
    model = models.peft_lora(models.body(), names)
    for module in model.modules():  # B starts at zero, which Arrow's singular vectors do not like
        for b in getattr(module, "lora_B", {}).values():
            torch.nn.init.normal_(b.weight, std=0.01)
    model.save_pretrained(folder)
    return [str(folder / name) for name in names]


def _arrow(folder: Path) -> Callable[[], object]:
    import peft

    config = peft.ArrowConfig(top_k=1)
    model = peft.create_arrow_model(models.body(), saved_adapters(folder, FEW), config).eval()
    inputs = models.batch(32, TOKENS)
    return lambda: model(**inputs)


def _x_lora(folder: Path) -> Callable[[], object]:
    import peft

    adapters = dict(enumerate(saved_adapters(folder, FEW)))
    body = models.body()
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=body.config.hidden_size, top_k_lora=1,
                              adapters={str(i): path for i, path in adapters.items()})  # fmt: skip
    body.config.use_cache = False
    model = peft.get_peft_model(body, config).eval()
    inputs = models.batch(32, TOKENS)
    return lambda: model(**inputs)
