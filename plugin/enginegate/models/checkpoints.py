"""Read what a model's folder holds before anything is loaded; refuse what gives no embedding.

Nothing is unpickled: transformers is told to read safetensors alone, and every module's folder of
sentence-transformers has them beside a pickle, or is refused here.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from enginegate.errors import ModelError
from enginegate.files import damage, parse_json, read_text, reading
from enginegate.models.late import MASK, PYLATE
from enginegate.models.modules import Module, has_modules, read_modules
from enginegate.models.spec import DROPPED, Kind, ModelSpec, OutputKind, refuse_for_kind

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WITHOUT_FILES = ("Normalize", MASK)  # modules that save nothing
_JUDGED = (
    "only models with an embedding a text, a vector a token, or a score a pair, are judged: name "
    "such a one"
)
_NO_SPLADE = "of sparse encoders only SPLADE is judged, a weight for every word by one transformer"
_NO_MOST = (
    "its largest terms alone are kept, which its export cannot do: save it without that limit, "
    "and cut where its vectors are stored"
)
_NO_LATE = (
    "its vectors of tokens are judged only as sentence-transformers saves them: load it with "
    "MultiVectorEncoder(FOLDER), save it with save_pretrained(NEW), and name NEW"
)
_NO_TYPE = (
    "it lacks its `model_type`, without which sentence-transformers neither masks nor normalises "
    "its vectors: save it again with a newer PyLate or sentence-transformers"
)
_OF_IMAGES = "its tokens are those of images: only text is judged"
_POOLED_TOKENS = (
    "the tokens of a document are pooled after the model, which an ONNX file cannot do: save it "
    "without that module, and pool where its vectors are stored"
)
_BODY = "; to deploy the embeddings of its body, name its head in allow_dropped"
_WORDS = "it scores by the words that a language model would say next"
_IMAGES = (
    "only text is judged: save its text encoder in a folder of its own, or build it in a `factory`"
)
_HEADS = ("*classifier*", "*classification_head*", "score.*", "*qa_outputs*", "logits_proj.*")
_CLASSIFIERS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
# Heads of masked-word and next-word training. Ordinary base checkpoints carry them, and no
# embedding is made by them: they are left out, and that is said, but it is no error.
_PRETRAINING = (
    "cls.*",
    "*lm_head*",
    "lm_loss.*",
    "vocab_transform.*",
    "vocab_layer_norm.*",
    "vocab_projector.*",
    "predictions.*",
    "*_predictions.*",
    "pred_layer.*",
    "sop_classifier.*",
    "*pooler.dense.*",  # of next-sentence training, where the class has no such layer
    "mlm_head.*",
)
_SPARSE = {"SparseEncoder", "SpladePooling", "MLMTransformer"}
_MULTI = {"MultiVectorEncoder", MASK, PYLATE}
_OLD_PYLATE = {"MaxSim"}
_OTHER_PIPELINES: Mapping[str, tuple[Set[str], str]] = MappingProxyType(
    {
        "a sparse encoder": ({"SparseStaticEmbedding", "SparseAutoEncoder"}, _NO_SPLADE),
        "a per-token model": ({"HierarchicalTokenPooling", "LambdaTokenPooling"}, _POOLED_TOKENS),
        "a reranker": ({"LogitScore"}, _WORDS),
    }
)
_MASKED_LM = ("head.*", "decoder.*")  # names that are a pre-training head in such a class only
# What is computed, not learned: old checkpoints hold it.
_BUFFERS = ("*position_ids", "*token_type_ids", "*inv_freq", "*masked_bias", "*.attn.bias")


@dataclass(frozen=True)
class Taken:
    """What a class took of a checkpoint.

    Attributes:
        folder: of the checkpoint.
        missing: weights of the class that the checkpoint does not have.
        unexpected: weights of the checkpoint that the class does not have.
        hidden: the same, of which the class says that it does not need them.
    """

    folder: Path
    missing: Collection[str]
    unexpected: Collection[str]
    hidden: Collection[str] = ()


def check_folder(spec: ModelSpec, folder: Path) -> None:
    """Raise ModelError if the folder cannot be loaded as a model of what is judged.

    It says what the folder is instead, or which of its files is not there.
    """
    with reading(folder, "the model's files", "fetch them again", ModelError):
        for part in backbones(spec, folder):
            _refuse_adapter(spec, part)
        _refuse_other_pipeline(spec, folder)
        for part in backbones(spec, folder):
            _refuse_other_class(spec, part)
        _refuse_pickles(spec, folder)
        _refuse_half(spec, folder)
        _refuse_dropped_modules(spec, folder)


def as_found(spec: ModelSpec, source: object) -> ModelSpec:
    """The definition with the kind of output that the folder `source` says; else as it is.

    Raises ModelError where its table says another kind, OptionError for keys that do not fit it.
    """
    if not isinstance(source, Path):
        return spec
    with reading(source, "the model's files", "fetch them again", ModelError):
        found, shown = _found_kind(spec, source)
    if spec.output_kind is not None and spec.output_kind != found:
        raise ModelError(
            f"model {spec.name}: output_kind = {str(spec.output_kind)!r}, and {source} is {shown}: "
            f'say output_kind = "{found}", or leave it out, in [tool.enginegate.models.{spec.name}]'
            f"{_BODY if found is OutputKind.SCORE else ''}"
        )
    resolved = replace(spec, output_kind=found)
    refuse_for_kind(resolved)
    return resolved


def _found_kind(spec: ModelSpec, folder: Path) -> tuple[OutputKind, str]:
    """What a model gives, and what it is."""
    config = read_json(folder / "config.json", {})
    architecture = next(iter(config.get("architectures") or ()), config.get("model_type", ""))
    said = read_json(folder / "config_sentence_transformers.json", {}).get("model_type")
    parts = {module.kind for module in _modules(folder)} | {str(said)}
    if found := sorted(parts & _SPARSE):
        return OutputKind.SPARSE, f"a sparse encoder ({found[0]})"
    if found := sorted(parts & _MULTI):
        return OutputKind.MULTI, f"a per-token model ({found[0]})"
    headed = architecture.endswith(_CLASSIFIERS[0]) and bool(_heads(spec, folder))
    if (headed and _labels(config) == 1) or said == "CrossEncoder":
        return OutputKind.SCORE, f"a reranker ({architecture or said})"
    named = architecture or "a pipeline"
    return OutputKind.DENSE, f"neither a reranker, a per-token model nor a sparse encoder ({named})"


def _labels(config: Mapping[str, Any]) -> int:
    return len(config.get("id2label", "01"))


def _heads(spec: ModelSpec, folder: Path) -> list[str]:
    """Weights of a head for scores or labels that its table does not leave out."""
    return [n for n in weight_names(folder) if _is_any(n, _HEADS) and not _allowed(spec, n)]


def follows_modules(spec: ModelSpec) -> bool:
    """Tell if a folder's `modules.json` is followed; a head replaces what it says."""
    return spec.kind is Kind.SENTENCE_TRANSFORMERS or (
        spec.kind is Kind.TRANSFORMERS and spec.head is None
    )


def backbones(spec: ModelSpec, folder: Path) -> list[Path]:
    """The folders of a model that transformers loads."""
    modules = list(_modules(folder))
    if spec.kind is Kind.TRANSFORMERS or not modules:
        return [folder]
    return [module.folder for module in modules if module.kind.endswith("Transformer")]


def _modules(folder: Path) -> Iterator[Module]:
    """The modules of a folder, each with those that it routes texts to."""
    for module in read_modules(folder):
        yield from (module, *module.routed)


def read_json(path: Path, default: Any) -> Any:
    """The content of a file of JSON, or `default` where there is none."""
    return parse_json(read_text(path)) if path.exists() else default


def _refuse_adapter(spec: ModelSpec, folder: Path) -> None:
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    base = read_json(path, {}).get("base_model_name_or_path")
    beside = any(_weight_files(folder))
    raise ModelError(
        f"model {spec.name}: {folder} holds an adapter of {base} (PEFT, {path.name})"
        f"{' beside whole weights, and which is meant is not told' if beside else ''}: merge it "
        "into its base model where peft is installed, "
        "AutoPeftModelForFeatureExtraction.from_pretrained(FOLDER).merge_and_unload()"
        ".save_pretrained(NEW), and name NEW"
        f"{'; or move the adapter away' if beside else ''}"
    )


def _refuse_other_pipeline(spec: ModelSpec, folder: Path) -> None:
    """Refuse pipelines that sentence-transformers makes for something else than an embedding."""
    said = read_json(folder / "config_sentence_transformers.json", {})
    kinds = {module.kind for module in _modules(folder)}
    kinds |= {str(said.get("model_type")), str(said.get("similarity_fn_name"))}
    for name, (names, gives) in _OTHER_PIPELINES.items():
        if found := sorted(kinds & names):
            raise _other(spec, folder, name, found[0], f"{gives}; {_JUDGED}")
    if not kinds & _MULTI and (kinds & _OLD_PYLATE or "query_prefix" in said):
        raise _other(spec, folder, "a per-token model", "of an older PyLate", _NO_TYPE)
    if any(_keeps_some(module) for module in _modules(folder)):
        raise _other(spec, folder, "a model of images", MASK, _OF_IMAGES)
    if most := said.get("max_active_dims"):
        raise _other(spec, folder, "a sparse encoder", f"max_active_dims {most}", _NO_MOST)
    if "CLIPModel" in kinds:
        raise _other(spec, folder, "a model of images", "CLIPModel", _IMAGES)


def _keeps_some(module: Module) -> bool:
    """Tell if a mask keeps the vectors of some tokens alone, which are places of images."""
    return module.kind == MASK and bool(
        read_json(module.folder / "config.json", {}).get("keep_only_token_ids")
    )


def _refuse_other_class(spec: ModelSpec, folder: Path) -> None:
    """Refuse what the configuration of a transformers model says to be no text encoder."""
    config = read_json(folder / "config.json", {})
    architecture = next(iter(config.get("architectures") or ()), "")
    shown = architecture or config.get("model_type", "")
    if "vision_config" in config or {"image_size", "patch_size"} <= set(config):
        raise _other(spec, folder, "a model of images", shown, _IMAGES)
    if architecture.endswith("ForRetrieval"):
        raise _other(spec, folder, "a per-token model", shown, _OF_IMAGES)
    if "colbert" in shown.lower():
        raise _other(spec, folder, "a per-token model", shown, _NO_LATE)
    if architecture.endswith(_CLASSIFIERS):
        _refuse_classifier(spec, folder, architecture, _labels(config))


def _refuse_classifier(spec: ModelSpec, folder: Path, architecture: str, labels: int) -> None:
    heads = _heads(spec, folder)
    if not heads or (labels == 1 and spec.scores):
        return
    named = _grouped(heads, weight_names(folder))
    raise _other(
        spec,
        folder,
        "a classifier",
        f"{architecture}, {labels} label{'s' if labels != 1 else ''}",
        f"it gives no embedding, and its head {_listed(named)} would be dropped; {_JUDGED}, or, if "
        f"you deploy the embeddings of its body, say {_say(named)}",
    )


def _other(spec: ModelSpec, folder: Path, kind: str, shown: str, why: str) -> ModelError:
    return ModelError(f"model {spec.name}: {folder} is {kind} ({shown}): {why}")


def _refuse_pickles(spec: ModelSpec, folder: Path) -> None:
    """Refuse weights that a library would have to unpickle: no safetensors are beside them."""
    homes = backbones(spec, folder)
    if follows_modules(spec):
        homes += [module.folder for module in _modules(folder)]
    for home in homes:
        pickled = sorted(home.glob("pytorch_model*.bin"))
        if pickled and not any(_weight_files(home)):
            raise ModelError(
                f"model {spec.name}: {pickled[0]} is a pickle, which could run code as it is read: "
                "only safetensors are read; take a revision that has them, or load the model where "
                "you trust it and save it again"
            )


def _refuse_half(spec: ModelSpec, folder: Path) -> None:
    """Refuse a folder that lacks a file, or has one cut short."""
    nested = not (folder / "config.json").exists() and has_modules(folder)
    if nested and spec.kind is Kind.TRANSFORMERS:
        raise ModelError(
            f"model {spec.name}: {folder} is a pipeline of sentence-transformers: name it with "
            f"`{Kind.SENTENCE_TRANSFORMERS}`"
        )
    wrong = [said for part in backbones(spec, folder) for said in _gaps(part)]
    if follows_modules(spec):
        saved = (m.folder for m in _modules(folder) if m.kind not in _WITHOUT_FILES)
        wrong += [f"{home.name} is missing" for home in saved if not home.is_dir()]
    if wrong:
        raise ModelError(
            f"model {spec.name}: folder {folder} is not whole: {_listed(wrong)}; fetch it again"
        )


def _gaps(folder: Path) -> Iterator[str]:
    wanted = [folder / "config.json", *(_weight_files(folder) or [folder / _WEIGHTS])]
    yield from (f"{path.name} is missing" for path in wanted if not path.exists())
    for path in _weight_files(folder):
        if path.exists() and (said := _damage_of(path)):
            yield f"{path.name} is damaged ({said})"


def _damage_of(path: Path) -> str:
    try:
        _names_in(path)
    except Exception as error:  # the library has a kind of its own
        return damage(error)
    return ""


def _refuse_dropped_modules(spec: ModelSpec, folder: Path) -> None:
    """Refuse modules with weights that a head of the table replaces."""
    if left := [name for name in _replaced(spec, folder) if not _allowed(spec, name)]:
        raise ModelError(
            f"model {spec.name}: with `head` the module of {folder} with the weights "
            f"{_listed(left)} is not taken: leave `head` out to follow the folder's modules, or "
            f"say {_say(sorted({name.partition('/')[0] + '/*' for name in left}))}"
        )


def _replaced(spec: ModelSpec, folder: Path) -> list[str]:
    """Weights of the modules that a head of the table replaces, `2_Dense/linear.weight`."""
    if follows_modules(spec):
        return []
    homes = [module.folder for module in _modules(folder) if module.folder != folder]
    return [f"{home.name}/{name}" for home in homes for name in weight_names(home)]


def refuse_idle(spec: ModelSpec, folder: Path, taken: Taken) -> None:
    """Raise ModelError where `allow_dropped` names weights that are not left out.

    Not asked of a model with several backbones: each has weights of its own.
    """
    if len(backbones(spec, folder)) > 1:
        return
    names = (*taken.unexpected, *taken.hidden, *_replaced(spec, folder))
    idle = [p for p in spec.allow_dropped if not any(fnmatchcase(name, p) for name in names)]
    if idle:
        raise ModelError(
            f"model {spec.name}: allow_dropped names {_listed(idle)}, and no such weights of "
            f"{folder} are left out: remove that from [tool.enginegate.models.{spec.name}]"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers would read, also those that are not there."""
    if (folder / _WEIGHTS).exists() or not (folder / _INDEX).exists():
        return [folder / _WEIGHTS] if (folder / _WEIGHTS).exists() else []
    shards = set(read_json(folder / _INDEX, {})["weight_map"].values())
    return [folder / name for name in sorted(shards)]


def weight_names(folder: Path) -> frozenset[str]:
    """The names of a folder's weights, from the headers of its safetensors that can be read."""
    files = [path for path in _weight_files(folder) if path.exists() and not _damage_of(path)]
    return frozenset(name for path in files for name in _names_in(path))


def _names_in(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "np") as content:
        return list(content.keys())


def said_of(spec: ModelSpec, taken: Taken) -> str:
    """Say what of a checkpoint is left out; empty for nothing.

    Raises ModelError for weights that the class lacks, and for those of the checkpoint that it does
    not take unless they are a known pre-training head or `allow_dropped` names them.
    """
    if taken.missing:
        raise ModelError(
            f"model {spec.name}: {taken.folder} has no weights {_listed(sorted(taken.missing))}, "
            f"which its class needs (config.json says {_architecture(taken.folder)}): name the "
            "folder that the whole model was saved in"
        )
    left = [n for n in (*taken.unexpected, *taken.hidden) if not _is_any(n, _BUFFERS)]
    allowed = [name for name in left if _allowed(spec, name)]
    known = [n for n in left if n not in allowed and _is_pretraining(n, taken)]
    unused = [n for n in taken.hidden if n in left and n not in (*allowed, *known)]
    unused = [name for name in unused if not name.startswith("decoder.")]
    _refuse_dropped(spec, taken, set(left) - {*allowed, *known, *unused})
    return "".join(_without(allowed, known, unused, weight_names(taken.folder)))


def _refuse_dropped(spec: ModelSpec, taken: Taken, dropped: Collection[str]) -> None:
    if dropped:
        named = _grouped(dropped, weight_names(taken.folder))
        raise ModelError(
            f"model {spec.name}: the checkpoint {taken.folder} has weights that would be dropped: "
            f"{_listed(named)} (config.json says {_architecture(taken.folder)}); build the whole "
            f"model in a `factory`, or, if you deploy it without them, say {_say(named)}"
        )


def _without(
    allowed: Collection[str], known: Collection[str], unused: Collection[str], names: frozenset[str]
) -> Iterator[str]:
    if known:
        yield " (without its pre-training head)"
    if unused:
        yield f" (without {_listed(_grouped(unused, names))}, which its class does not use)"
    if allowed:
        yield f" (without {_listed(_grouped(allowed, names))}{DROPPED}"


def _is_pretraining(name: str, taken: Taken) -> bool:
    masked = _architecture(taken.folder).endswith("ForMaskedLM")
    return _is_any(name, (*_PRETRAINING, *(_MASKED_LM if masked else ())))


def _architecture(folder: Path) -> str:
    named = read_json(folder / "config.json", {}).get("architectures") or ["no class"]
    return str(named[0])


def _allowed(spec: ModelSpec, name: str) -> bool:
    return _is_any(name, spec.allow_dropped)


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _grouped(names: Iterable[str], among: Collection[str]) -> list[str]:
    """The names, or `first.*` where all that begin so among a checkpoint's names are meant."""
    names = set(names)
    others = {name.partition(".")[0] for name in set(among) - names}
    firsts = {name: name.partition(".")[0] for name in names}
    return sorted({n if f in others or f == n else f"{f}.*" for n, f in firsts.items()})


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:4]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _say(names: Iterable[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"allow_dropped = [{quoted}]"
