"""From token vectors to an embedding, as a folder's `modules.json` or its table says."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginegate.errors import ModelError
from enginegate.models.modules import LIBRARY, Module, read_modules
from enginegate.models.spec import ModelSpec
from enginegate.models.tokens import read_object

if TYPE_CHECKING:
    import torch

_MODES = {"first": "cls", "last": "lasttoken", "mean": "mean"}  # our words to the library's
_OLD_MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def is_pipeline(spec: ModelSpec, folder: Path | None) -> bool:
    """Tell if the modules of a transformers folder are followed; a head replaces all of them."""
    return folder is not None and spec.head is None and bool(read_modules(folder))


def own_modules(spec: ModelSpec, folder: Path) -> "list[torch.nn.Module]":
    """What follows the backbone: from its features to `sentence_embedding`.

    `pooling` and `normalize` of the table replace the folder's. Raises ModelError for what is not
    sentence-transformers' own.
    """
    body, *rest = read_modules(folder)
    _check_modules(spec, folder, body, rest)
    return as_table_says(spec, [_load(module) for module in rest])


def as_table_says(spec: ModelSpec, modules: "Sequence[torch.nn.Module]") -> "list[torch.nn.Module]":
    """The modules after a backbone, with `pooling` and `normalize` of the table in their place."""
    kept = [_replaced(spec, module) for module in modules if _is_kept(spec, module)]
    return [*kept, *_added(spec, modules)]


def leaves_prompt_out(encoder: "torch.nn.Module") -> bool:
    """Tell if a pooling in it does not count the tokens of a prompt."""
    return any(getattr(part, "include_prompt", True) is False for part in encoder.modules())


def dimensions(spec: ModelSpec, folder: Path | None) -> int | None:
    """Dimensions that are kept; None for all."""
    return spec.truncate_dim or (own_dimensions(folder) if folder else None)


def otherwise(spec: ModelSpec, folder: Path) -> Iterator[str]:
    """Statements of what a table says otherwise than the folder does."""
    yield from other_modules(spec, folder)
    own = own_dimensions(folder)
    if spec.truncate_dim and own != spec.truncate_dim:
        yield f"truncate_dim {spec.truncate_dim}, where the model's own is {own or 'all'}"


def other_modules(spec: ModelSpec, folder: Path) -> Iterator[str]:
    """Statements of what a table says otherwise than the folder's `modules.json` does."""
    modules = read_modules(folder)
    if modules and spec.head is not None:
        yield f"a head of width {spec.head}, where the model has a modules.json: it is not followed"
    elif modules:
        yield from _other_modules(spec, folder, modules)


def _other_modules(spec: ModelSpec, folder: Path, modules: Sequence[Module]) -> Iterator[str]:
    found = {module.kind: module.path for module in modules}
    if spec.pooling and "Pooling" in found:
        place = f"{found['Pooling']}/config.json"
        own = _mode(read_object(folder / place))
        if own != _MODES[spec.pooling]:
            yield f"pooling {spec.pooling}, where {place} says {own}"
    if spec.normalize is not None and spec.normalize != ("Normalize" in found):
        does = "normalises" if "Normalize" in found else "does not"
        yield f"normalize {str(spec.normalize).lower()}, where the model {does}"


def _mode(config: Mapping[str, Any]) -> str:
    said = config.get("pooling_mode")
    if said is None:
        old = (name for name, on in config.items() if name.startswith("pooling_mode_") and on)
        said = [_OLD_MODES.get(name, name.removeprefix("pooling_mode_")) for name in old]
    return said if isinstance(said, str) else " and ".join(said)


def own_dimensions(folder: Path) -> int | None:
    """Dimensions that the folder itself keeps; None for all."""
    said = read_object(folder / "config_sentence_transformers.json").get("truncate_dim")
    return said if isinstance(said, int) else None


def _check_modules(spec: ModelSpec, folder: Path, body: Module, rest: Sequence[Module]) -> None:
    if find_spec(LIBRARY) is None:
        raise ModelError(
            f"model {spec.name}: {folder} has a modules.json, and sentence-transformers, which "
            "reads it, is not installed: pip install sentence-transformers"
        )
    foreign = [module.type for module in (body, *rest) if module.is_foreign]
    if foreign or body.kind != "Transformer" or body.path:
        named = foreign[0] if foreign else f"{body.kind} in {body.path or folder}"
        raise ModelError(
            f"model {spec.name}: modules.json of {folder} names {named}, which `transformers` "
            "cannot follow: name the folder with `sentence_transformers`"
        )


def _load(module: Module) -> "torch.nn.Module":
    package, _, name = module.type.rpartition(".")
    kind = getattr(importlib.import_module(package), name)
    return kind.load(str(module.folder))  # type: ignore[no-any-return]


def _is_kept(spec: ModelSpec, module: "torch.nn.Module") -> bool:
    return spec.normalize is not False or type(module).__name__ != "Normalize"


def _replaced(spec: ModelSpec, module: "torch.nn.Module") -> "torch.nn.Module":
    """The pooling that the table says instead of the folder's."""
    if spec.pooling is None or type(module).__name__ != "Pooling":
        return module
    own: Any = module
    config = own.get_config_dict()
    width = config.get("embedding_dimension") or config["word_embedding_dimension"]
    kept = config.get("include_prompt", True)
    return type(own)(width, pooling_mode=_MODES[spec.pooling], include_prompt=kept)  # type: ignore[no-any-return]


def _added(spec: ModelSpec, modules: "Sequence[torch.nn.Module]") -> "Iterator[torch.nn.Module]":
    """The normalisation that the table asks for where the folder has none."""
    if spec.normalize and not any(type(module).__name__ == "Normalize" for module in modules):
        yield importlib.import_module(f"{LIBRARY}.models").Normalize()
