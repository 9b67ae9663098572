"""The surface of texts: its n-grams, its vectors, and a router that reads it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from library import router_of
from safetensors.torch import load_file

from ttmoe.encoding import Choice, Completion
from ttmoe.features import FeatureSpec
from ttmoe.router import Router, load_router, save_router
from ttmoe.surface import BUCKETS, CHARACTERS, Ngrams, Surface, surface_text

TEXTS = ["What is it?", "", "héllo 🙂", "what is it", "\ud800 alone", "a" * 3000, "hello there"]


def of_text(ngrams, text):
    """The hashes and weights of one text."""
    part = slice(int(ngrams.offsets[text]), int(ngrams.offsets[text + 1]))
    return dict(zip(ngrams.ids[part].tolist(), ngrams.weights[part].tolist(), strict=True))


def test_the_ngrams_of_a_text_are_counted_by_their_hash():
    """By one n-gram at a time: those of a text are the n-grams of all its windows, weighted by 1 + log(count)."""
    text = "banana bands"
    marked = f"\x02{text}\x03"
    counts = Counter(marked[i : i + n] for n in (1, 2, 3, 4) for i in range(len(marked) - n + 1))
    whole = of_text(Ngrams.of([text]), 0)
    assert len(whole) == len(counts)  # no two of these share a hash
    norm = math.sqrt(sum((1 + math.log(count)) ** 2 for count in counts.values()))
    assert sorted(whole.values()) == pytest.approx(sorted((1 + math.log(c)) / norm for c in counts.values()), abs=1e-3)
    shared = whole.keys() & of_text(Ngrams.of(["a band"]), 0).keys()
    assert len(shared) == len({"\x02", "a", " ", "b", "n", "d", "\x03", "a ", " b", "ba", "an", "nd", "a b", " ba",
                               "ban", "and", "a ba", " ban", "band"})  # fmt: skip


GOLDEN = [6997, 11071, 12174, 15067, 19025, 20331, 24624, 25169, 29245, 32316, 6017, 15067, 22722, 24624, 28669, 32568]


def test_hashes_never_change():
    """They are part of the format of a router's files."""
    ngrams = Ngrams.of(["aé", "b"])
    assert ngrams.offsets.tolist() == [0, 10, 16]
    assert ngrams.ids.tolist() == GOLDEN


def test_texts_do_not_depend_on_their_neighbours():
    together = Ngrams.of(TEXTS * 200)  # more than are hashed at a time
    assert len(together) == len(TEXTS) * 200
    for i, text in enumerate(TEXTS):
        alone = of_text(Ngrams.of([text]), 0)
        assert alone
        assert of_text(together, i) == of_text(together, i + len(TEXTS) * 199) == alone
    chosen = together[torch.tensor([6, 0, 0])]
    assert [of_text(chosen, i) for i in range(3)] == [of_text(together, i) for i in (6, 0, 0)]
    assert len(Ngrams.of([])) == len(Ngrams.join([])) == 0


def test_case_punctuation_and_order_are_seen_and_the_rest_of_a_long_text_is_not():
    ngrams = Ngrams.of(["What is it?", "what is it", "it is what", "b" * CHARACTERS, "b" * CHARACTERS + "c"])
    assert len({frozenset(of_text(ngrams, i)) for i in range(3)}) == 3
    assert of_text(ngrams, 3) == of_text(ngrams, 4)
    assert 0 <= int(ngrams.ids.min()) <= int(ngrams.ids.max()) < BUCKETS


def test_the_fields_of_a_row_are_kept_apart():
    rows = ["one", ("one",), ("one", "two"), Choice("one", ("two", "three")), Completion("one", "never seen")]
    assert [surface_text(row) for row in rows] == ["one", "one", "one\x1ftwo", "one\x1ftwo\x1fthree", "one"]


def surfaced(tasks=3, width=8):
    torch.manual_seed(0)
    return Surface(tasks, width).requires_grad_(False)


def test_a_texts_vector_is_the_rectified_sum_of_its_ngrams_embeddings():
    surface, ngrams = surfaced(), Ngrams.of(TEXTS)
    found = surface.embed(ngrams)
    for i in range(len(TEXTS)):
        each = of_text(ngrams, i)
        expected = sum(weight * surface.embedding.weight[number] for number, weight in each.items()).relu()
        torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(surface(found), found @ surface.output.weight.T + surface.output.bias)


def test_a_routers_score_is_the_sum_of_both_and_its_files_keep_it(tmp_path):
    router = router_of().eval()
    features, texts = torch.randn(len(TEXTS), 256, generator=torch.Generator().manual_seed(0)), TEXTS
    alone = router(features)
    assert router.read_surface(texts) is None
    router.surface = surfaced()
    vectors = router.read_surface(texts)
    torch.testing.assert_close(router(features, vectors), alone + router.surface(vectors))
    routes = router.route(features, vectors)
    assert routes.names == [router.tasks[i] for i in router(features, vectors).argmax(-1)]
    with pytest.raises(AssertionError, match="texts"):
        router.route(features)

    save_router(router, tmp_path, {}, {}, {})
    kept = load_file(tmp_path / "router.safetensors")
    assert kept["surface.embedding.weight"].dtype == torch.half
    found, _ = load_router(tmp_path)
    torch.testing.assert_close(found(features, found.read_surface(texts)), router(features, vectors), atol=1e-2, rtol=0)
    save_router(found, tmp_path / "again", {}, {}, {})
    assert (tmp_path / "again" / "router.safetensors").read_bytes() == (tmp_path / "router.safetensors").read_bytes()


def test_the_size_hardly_depends_on_the_number_of_tasks(tmp_path):
    """A goal of 64 MB at 1,000 tasks."""
    sizes = {}
    for tasks in (4, 1000):
        router = Router([str(i) for i in range(tasks)], 4, FeatureSpec())
        router.surface = Surface(tasks)
        save_router(router, tmp_path / str(tasks), {}, {}, {})
        sizes[tasks] = (tmp_path / str(tasks) / "router.safetensors").stat().st_size
    assert sizes[1000] - sizes[4] < 300_000
    assert sizes[1000] < 5_000_000


def test_everything_is_on_the_device_of_the_router(monkeypatch):
    """As on a GPU: n-grams are hashed on the CPU, and all that the embeddings get is on their device."""
    router = router_of().to("meta")
    router.surface, router.groups = Surface(3).to("meta"), (router.tasks[:2],)
    given, embed = [], router.surface.embedding.forward

    def record(ids, offsets, per_sample_weights):
        given.extend(tensor.device.type for tensor in (ids, offsets, per_sample_weights))
        return embed(ids, offsets, per_sample_weights)

    monkeypatch.setattr(router.surface.embedding, "forward", record)
    vectors = router.read_surface(TEXTS)
    assert given == ["meta"] * 3
    assert vectors.device.type == "meta"
    scores = router(torch.zeros(len(TEXTS), 256, device="meta"), vectors)
    assert (scores.device.type, router.choose(scores).device.type) == ("meta", "meta")
