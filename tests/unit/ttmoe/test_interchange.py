"""Export to and import from PEFT LoRA adapters: expert and adapter compute the same function."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, NAMES, batch, stir, tiny_bank, tiny_model, with_each
from safetensors.torch import load_file, save_file

from ttmoe.adapter import AdapterSpec
from ttmoe.architectures import layer_path
from ttmoe.bank import Bank
from ttmoe.errors import InputError
from ttmoe.expert_files import save_expert
from ttmoe.interchange import export_lora, import_lora
from ttmoe.layer import linear_size

peft = pytest.importorskip("peft")

# PEFT 0.21.2 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SHAPES = {"q": "4x8|8x4@2", "v": "auto", "down": "6x8|4x8@3"}
SPECS = {
    "mixed": AdapterSpec(targets=("q", "v", "up", "down"), rank=4, alpha=1.5, first_layer=1, shape=SHAPES),
    "lora": AdapterSpec(method="lora", targets=("k", "q", "o"), rank=3, alpha=2.0, last_layer=1),
}
DECODERS = tuple(name for name in NAMES if "num_key_value_heads" in ARCHITECTURES[name].settings
                 or name in ("gpt2", "gpt_neox", "opt"))  # fmt: skip


def full_bank(name, **settings):
    bank = tiny_bank(name, **settings)
    for i, (expert, spec) in enumerate(SPECS.items()):
        stir(bank.add(expert, spec, i + 2, torch.Generator()), seed=i)
    return bank


def states(bank, inputs, name):
    with bank.active(name):
        return bank.model(**inputs).last_hidden_state


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("expert", "name"), with_each(*SPECS))
@torch.no_grad()
def test_export_loads_in_peft_and_imports_again(expert, name, tmp_path):
    bank, inputs = full_bank(name), batch()
    expected, scores = states(bank, inputs, expert), bank(inputs, expert)
    assert (expected - bank.model(**inputs).last_hidden_state).abs().max() > 0.05
    export_lora(bank, expert, tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(name), tmp_path)
    close(loaded(**inputs).last_hidden_state, expected)
    other = tiny_bank(name)
    bare = other.model(**inputs).last_hidden_state
    import_lora(other, tmp_path, "back")
    close(states(other, inputs, "back"), expected)
    close(other(inputs, "back"), scores)
    assert torch.equal(other.model(**inputs).last_hidden_state, bare)
    import_lora(bank, tmp_path, "beside")
    close(bank(inputs, ["beside", expert] * 3), scores)


def causal_model(name):
    made = ARCHITECTURES[name]
    config = getattr(transformers, f"{made.prefix}Config")(**made.settings)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.base_model.load_state_dict(tiny_model(name).state_dict())
    return model


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_the_model_with_its_language_head_gives_the_same_logits(name, tmp_path):
    model, inputs = causal_model(name), batch()
    bare = model(**inputs).logits
    bank = Bank(model.base_model, "last")
    stir(bank.add("mixed", SPECS["mixed"], 2, torch.Generator()))
    with bank.active("mixed"):
        expected = model(**inputs).logits
    assert (expected - bare).abs().max() > 1e-3
    export_lora(bank, "mixed", tmp_path, task_type="CAUSAL_LM")
    loaded = peft.PeftModel.from_pretrained(causal_model(name), tmp_path)
    assert type(loaded).__name__ == "PeftModelForCausalLM"
    close(loaded(**inputs).logits, expected)
    import_lora(bank, tmp_path, "back")
    with bank.active("back"):
        close(model(**inputs).logits, expected)


@torch.no_grad()
def test_an_adapter_padded_to_a_rank_that_a_server_allows_is_the_same(tmp_path):
    """vLLM reads one rank for all modules."""
    model, inputs = causal_model("llama"), batch()
    bank = Bank(model.base_model, "last")
    stir(bank.add("mixed", AdapterSpec(rank=3, targets=("q", "v", "down")), 0, torch.Generator()))
    with bank.active("mixed"):
        expected = model(**inputs).logits
    assert export_lora(bank, "mixed", tmp_path, task_type="CAUSAL_LM", ranks=(2, 8, 16)) == 8
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (8, 8, {}, {})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.shape[0] for key, t in tensors.items() if "lora_A" in key} == {8}
    close(peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path)(**inputs).logits, expected)
    with pytest.raises(InputError, match="an update has rank 3, and 2 is the highest that the server allows"):
        export_lora(bank, "mixed", tmp_path, task_type="CAUSAL_LM", ranks=(1, 2))


def own_paths(model):
    """List the paths of all linear maps inside the first layer."""
    layer = model.get_submodule(layer_path(model))[0]
    return [path for path, module in layer.named_modules() if linear_size(module)]


SETTINGS = {
    "plain": dict(r=4, lora_alpha=6),
    "rslora": dict(r=4, lora_alpha=3, use_rslora=True),
    "some layers": dict(r=2, lora_alpha=5, layers_to_transform=[0, 2]),
    "patterns": dict(r=3, lora_alpha=4),  # and what the test adds to it
}


def from_peft(name, kind, folder, model=None):
    """Save an adapter of PEFT with random factors."""
    model = tiny_model(name) if model is None else model
    paths = own_paths(tiny_model(name))
    settings = dict(SETTINGS[kind], target_modules=paths, fan_in_fan_out=name == "gpt2")
    if kind == "patterns":
        settings |= dict(rank_pattern={paths[0]: 5, rf"{layer_path(tiny_model(name))}.1.{paths[1]}": 1},
                         alpha_pattern={paths[0]: 2, paths[-1]: 7})  # fmt: skip
    if kind == "some layers":
        settings |= dict(layers_pattern=layer_path(model).rpartition(".")[2])
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
        for key, parameter in made.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(("kind", "name"), with_each("patterns", "plain", "rslora", "some layers"))
@torch.no_grad()
def test_an_adapter_of_peft_is_imported(kind, name, tmp_path):
    inputs, bank = batch(), tiny_bank(name)
    expected = from_peft(name, kind, tmp_path)(**inputs).last_hidden_state
    assert (expected - bank.model(**inputs).last_hidden_state).abs().max() > 0.05
    expert = import_lora(bank, tmp_path, "x", classes=3)
    close(states(bank, inputs, "x"), expected)
    assert expert.adapter.spec.method == "lora"
    assert not any(p.requires_grad for p in expert.parameters())
    assert bank(inputs, "x").eq(0).all()
    assert bank(inputs, "x").shape == (6, 3)
    if name == "llama":
        assert set(expert.adapter.spec.targets) == {"q", "k", "v", "o", "up", "gate", "down"}


@torch.no_grad()
def test_an_adapter_of_peft_on_the_causal_model_is_imported(tmp_path):
    inputs = batch()
    made = from_peft("llama", "patterns", tmp_path, causal_model("llama"))
    expected, bank = made.base_model.model.model(**inputs).last_hidden_state, tiny_bank("llama")
    import_lora(bank, tmp_path, "x", classes=2)
    close(states(bank, inputs, "x"), expected)


def test_an_imported_expert_is_saved_and_loaded(tmp_path):
    from ttmoe.expert_files import load_expert

    bank = tiny_bank()
    with torch.no_grad():
        from_peft("llama", "patterns", tmp_path / "peft")
    expert = stir_head(import_lora(bank, tmp_path / "peft", "x", classes=2))
    base = {"id": "tiny", "digest": "d1"}
    manifest = save_expert(expert, tmp_path / "ours", task="x", kind="classify", labels=("a", "b"), base=base,
                           spec_hash="s", metrics={})  # fmt: skip
    load_expert(bank, tmp_path / "ours", "d1", "again")
    assert torch.equal(bank(batch(), "again"), bank(batch(), "x"))
    export_lora(bank, "x", tmp_path / "out", manifest=manifest)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    import_lora(bank, tmp_path / "out", "back", base_digest="d1")
    close(bank(batch(), "back"), bank(batch(), "x"))
    with pytest.raises(InputError, match=r"the adapter is for base tiny \(d1\), but the loaded base is d2"):
        import_lora(bank, tmp_path / "out", "other", base_digest="d2")


def stir_head(expert):
    with torch.no_grad():
        torch.nn.init.normal_(expert.head.weight)
    return expert


def test_different_ranks_become_patterns_and_alpha_equals_rank(tmp_path):
    bank = full_bank("phi3")
    export_lora(bank, "mixed", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ranks = {key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(value)
             for key, value in tensors.items() if "lora_A" in key}  # fmt: skip
    assert ranks["layers.1.self_attn.qkv_proj"] == 2 + 4
    assert ranks["layers.1.mlp.down_proj"] == 3
    assert config["r"] == config["lora_alpha"] == 6
    assert config["rank_pattern"] == config["alpha_pattern"] == {k: v for k, v in ranks.items() if v != 6}
    b = tensors["base_model.model.layers.1.self_attn.qkv_proj.lora_B.weight"]
    assert b[:32, 2:].eq(0).all()  # q's rows have nothing of v,
    assert b[32:, :2].eq(0).all()  # nor v's of q,
    assert b[32:48].eq(0).all()  # and k's are not touched


CHANGES = {
    "use_dora": (True, "use_dora=True is not supported"),
    "bias": ("all", "bias='all' trains the base's biases"),
    "modules_to_save": (["score"], r"modules_to_save=\['score'\] is not supported"),
    "init_lora_weights": ("pissa", "init_lora_weights='pissa' changes the base's weights"),
    "peft_type": ("LOHA", "peft_type 'LOHA' is not LORA"),
    "layer_replication": ([[0, 2]], "layer_replication"),
    "use_of_a_later_release": (True, "use_of_a_later_release=True is not supported"),
    "lora_alpha": (None, "cannot read alpha"),
    "alpha_pattern": ({"q_proj": float("inf")}, "alpha is inf"),
}


@pytest.fixture
def exported(tmp_path):
    export_lora(full_bank("llama"), "lora", tmp_path)
    return tmp_path


def refused(folder, match, name="llama", **arguments):
    bank = tiny_bank(name)
    with pytest.raises(InputError, match=match) as caught:
        import_lora(bank, folder, "x", **arguments)
    assert caught.value.where
    assert caught.value.fix
    assert not bank.experts
    assert not bank._layers.by_path


@pytest.mark.parametrize("key", CHANGES)
def test_options_that_make_it_another_function_are_refused(key, exported):
    value, match = CHANGES[key]
    config = json.loads((exported / "adapter_config.json").read_text())
    (exported / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    refused(exported, match)


def change_tensors(folder, change, file="adapter_model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


Q = "base_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("change", "match"), [
    (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(3)}), "lora_magnitude_vector' is not a factor"),
    (lambda t: t.update({"base_model.model.score.weight": torch.ones(3)}), "score.weight' is not a factor"),
    (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(3, 30)}), r"have shapes .*3, 30.*, but the map is 32 to 32"),
    (lambda t: t.pop(f"{Q}.lora_B.weight"), "have shapes"),
    (lambda t: t.pop(f"{Q}.lora_A.weight"), "have shapes"),
    (lambda t: t[f"{Q}.lora_A.weight"].fill_(torch.nan), "not finite"),
    (lambda t: t.update({"base_model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(3, 32)}), "no linear map"),
    (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 32)}), "no linear map 'lm_head'"),
    (lambda t: t.clear(), "contains no factors"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(change, match, exported):
    change_tensors(exported, change)
    refused(exported, match)


def test_files_and_heads_that_do_not_fit_are_refused(exported, tmp_path):
    refused(exported, "the adapter's head has 3 classes, not 2", classes=2)
    refused(exported, "no linear map 'layers.0", name="bert")
    change_tensors(exported, lambda t: t.pop("scale"), "head.safetensors")
    refused(exported, "the head does not fit this base")
    (exported / "head.safetensors").unlink()
    refused(exported, "the adapter has no head")
    (exported / "adapter_model.safetensors").write_bytes(b"cut")
    refused(exported, "cannot read the weights", classes=2)
    refused(tmp_path / "nowhere", "cannot read the PEFT adapter")
    with pytest.raises(InputError, match="cannot export task type 'SEQ_CLS'"):
        export_lora(full_bank("llama"), "lora", tmp_path, task_type="SEQ_CLS")
