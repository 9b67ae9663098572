"""The language head gives the logits of transformers' causal model, on every architecture."""

from __future__ import annotations

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, LAYERS, VOCABULARY, tiny_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from ttmoe.bank import Bank
from ttmoe.errors import InputError
from ttmoe.language_head import LanguageHead, answer_scores, require_causal, require_language_head

_GEMMA = {**ARCHITECTURES["gemma3_text"].settings, "final_logit_softcapping": 2.0}
CAUSAL = {
    **{name: (ARCHITECTURES[name].prefix, ARCHITECTURES[name].settings)
       for name in ("llama", "gemma3_text", "gpt2", "gpt_neox", "opt")},
    "llama, tied": ("Llama", {**ARCHITECTURES["llama"].settings, "tie_word_embeddings": True}),
    "gemma2, capped": ("Gemma2", _GEMMA),
    "granite, scaled": ("Granite", {**ARCHITECTURES["llama"].settings, "logits_scaling": 4.0}),
    "cohere, scaled": ("Cohere", {**ARCHITECTURES["llama"].settings, "logit_scale": 0.25}),
    "phi, a bias": ("Phi", ARCHITECTURES["llama"].settings),
    "mixtral, experts of its own": ("Mixtral", {**ARCHITECTURES["llama"].settings, "num_local_experts": 2}),
}  # fmt: skip


def save_causal(name, folder):
    prefix, settings = CAUSAL[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(getattr(transformers, f"{prefix}Config")(**settings)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def body_of(folder, **more):
    return AutoModel.from_pretrained(folder, attn_implementation="eager", **more).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_logits_equal_the_causal_models(name, tmp_path):
    whole = save_causal(name, tmp_path)
    body, ids = body_of(tmp_path), torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    require_language_head(body, tmp_path)
    words = Bank(body, "last").language_head
    top = body(input_ids=ids).last_hidden_state
    expected = whole(ids).logits
    found = words.logits(top.flatten(0, 1)).view_as(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if "capped" in name or "scaled" in name:  # without what the architecture adds they are others
        plain = top @ whole.get_output_embeddings().weight.T
        assert (plain - expected).abs().max() > 0.1


def test_tied_weights_are_shared_and_others_loaded(tmp_path):
    for name, shared in (("llama, tied", True), ("llama", False)):
        save_causal(name, tmp_path / name)
        bank = Bank(body_of(tmp_path / name, dtype=torch.bfloat16), "last")
        before = set(bank.state_dict())
        head = bank.language_head.causal.lm_head.weight
        assert (head is bank.model.get_input_embeddings().weight) == shared
        assert (head.dtype, head.requires_grad, bank.language_head) == (torch.bfloat16, False, bank.language_head)
        assert set(bank.state_dict()) == before  # they are no part of the bank's own state


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_an_encoder_has_no_language_head(name):
    body = tiny_model(name)
    with pytest.raises(InputError, match="not a causal language model") as caught:
        require_causal(body.config, "tasks.t.kind")
    assert caught.value.where == "tasks.t.kind"
    assert "causal base" in caught.value.fix
    with pytest.raises(InputError, match=rf"\({name}\)"):
        _ = Bank(body, "mean").language_head


def test_a_base_without_its_language_head_is_refused(tmp_path):
    body = tiny_model("llama")  # out of no folder
    with pytest.raises(InputError, match=r"has no lm_head\.weight"):
        LanguageHead(body)
    body.save_pretrained(tmp_path)  # the body alone
    for asked in (lambda: require_language_head(body, tmp_path), lambda: LanguageHead(body_of(tmp_path))):
        with pytest.raises(InputError, match=r"has no lm_head\.weight.*without its language head"):
            asked()
    require_language_head(tiny_model("gpt2"), tmp_path)  # tied: its embeddings are all that it takes


def test_the_old_key_of_a_head(tmp_path):
    from safetensors.torch import load_file, save_file

    whole = save_causal("gpt_neox", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["embed_out.weight"] = tensors.pop("embed_out.weight", tensors.pop("lm_head.weight", None))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    head = LanguageHead(body_of(tmp_path)).causal.lm_head.weight
    assert torch.equal(head, whole.get_output_embeddings().weight)


def test_answer_scores_and_their_gradients_in_chunks(monkeypatch, tmp_path):
    whole = save_causal("gemma2, capped", tmp_path)
    words = LanguageHead(body_of(tmp_path))
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(2))
    lengths, answers = [7, 4, 5], [3, 0, 2]
    spans = [(0, 4, 7), (2, 3, 5)]
    mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    logs = whole(ids).logits.log_softmax(-1)
    found = []
    for places in (2, 256):
        monkeypatch.setattr("ttmoe.language_head.MAX_POSITIONS", places)
        top = body_of(tmp_path)(**inputs).last_hidden_state.detach().requires_grad_()
        scores = answer_scores(words, top, inputs, spans).split(answers)
        assert [tuple(row.shape) for row in scores] == [(3, 2), (0, 2), (2, 2)]
        for row, (length, count) in enumerate(zip(lengths, answers, strict=True)):
            for i, place in enumerate(range(length - count, length)):
                torch.testing.assert_close(scores[row][i, 0], logs[row, place - 1, ids[row, place]], atol=1e-4, rtol=0)
                torch.testing.assert_close(scores[row][i, 1], logs[row, place - 1].max(), atol=1e-4, rtol=0)
        torch.cat(scores)[:, 0].sum().backward()
        found.append((torch.cat(scores).detach(), top.grad))
    torch.testing.assert_close(*[scores for scores, _ in found])
    torch.testing.assert_close(*[grad for _, grad in found])
    read = (found[0][1].abs().sum(-1) > 0).nonzero().tolist()
    assert read == [[0, 3], [0, 4], [0, 5], [2, 2], [2, 3]]  # the places before the answers' tokens, and no other
    assert answer_scores(words, top, inputs, []).shape == (0, 2)


def test_the_generation_model_removes_the_body_after_an_error(tmp_path):
    save_causal("opt", tmp_path)
    words = LanguageHead(body_of(tmp_path))

    def fail():
        with words.generation_model() as causal:
            assert causal.model is words.body
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert words.causal.model is not words.body
    assert len(list(words.causal.parameters())) == 1
    assert len(words.body.decoder.layers) == LAYERS
