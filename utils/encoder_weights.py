"""Where the first weights of an encoder come from: a file, a folder, timm's hub, or an address.

A file is opened as safetensors, or by torch with `weights_only=True`: nothing in it is run. The
network is asked once, for a few seconds, and only if the cache of the hub has no such file.
"""

import difflib
import pickle
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from utils.errors import UserError, one_line
from utils.files import PICKLE, fits, foreign, nearest_path, read_json

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # as timm looks for them
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")  # how timm's names of folders and of the hub begin
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in them, the first that is there
HEAD_ONLY = {"num_classes", "global_pool", "img_size", "drop_rate", "drop_path_rate"}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MISSING = re.compile(r"Missing keys \((.*)\) discovered")
WRONG_SHAPE = re.compile(r"size mismatch for (\S+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]")


# ---- a file -------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors or of torch, without what may be wrapped round them.

    Raises:
        UserError: there is no such file, it needs more than tensors to be opened, or it is damaged.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            begin = file.read(256)
    except OSError as error:
        near = nearest_path(path)
        remedy = f"did you mean {near}?" if near and near != path else "name another"
        reason = error.strerror or one_line(error)
        raise UserError(f"cannot read encoder_weights={path} ({reason}); {remedy}") from error
    is_torch = PICKLE.match(begin) is not None and (begin[:2] != b"PK" or b"/data.pkl" in begin)
    if not is_torch and (problem := foreign(begin)):
        raise UserError(f"encoder_weights={path} {problem}")
    content = _open(path, is_torch=is_torch)

    # What training scripts put round the weights.
    for _ in range(3):
        inner = [content.get(name) for name in WRAPPERS]
        content = next((value for value in inner if isinstance(value, Mapping)), content)
    tensors = {n: t for n, t in content.items() if isinstance(n, str) and isinstance(t, Tensor)}
    if not tensors:
        raise UserError(
            f"encoder_weights={path} holds no tensors by name; save a state dict, with "
            "torch.save(model.state_dict(), FILE)"
        )
    check_finite(path, tensors)
    return tensors


def _open(path: Path, *, is_torch: bool) -> Mapping:
    """What a file holds, without running anything; empty if that is no mapping."""
    try:
        if not is_torch:
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content if isinstance(content, Mapping) else {}
    except pickle.UnpicklingError as error:
        raise UserError(
            f"encoder_weights={path} contains more than tensors, or is damaged; it was not opened, "
            "because it might run code; save only its state dict, best as safetensors"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"encoder_weights={path} is not a complete file of safetensors or torch "
            f"({one_line(error)}); download or copy it again"
        ) from error


def check_finite(path: object, tensors: Mapping[str, Tensor]) -> None:
    """Raises a `UserError` that names the first tensor with NaN or infinity."""
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{name} in {path} holds NaN or infinity: the file is damaged")


def strip_prefix(tensors: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Drops the prefix, such as "module.", under which most of the wanted names are found.

    Tensors that do not have it, such as those of a decoder, are left out.
    """
    prefixes = {""}
    for name in tensors:
        rest = name
        while part := next(filter(rest.startswith, PREFIXES), ""):
            rest = rest.removeprefix(part)
            prefixes.add(name.removesuffix(rest))
    counted = sorted(prefixes, key=len)
    best = max(counted, key=lambda prefix: sum(prefix + name in tensors for name in wanted))
    return {n.removeprefix(best): t for n, t in tensors.items() if n.startswith(best)}


# ---- do the tensors fit? ------------------------------------------------------------------------


def load_state(encoder: nn.Module, path: Path, name: str) -> None:
    """Loads a file into an encoder that is not timm's: its state dict, whole.

    Args:
        name: of the encoder, for errors.

    Raises:
        UserError: tensors are missing, or of another shape.
    """
    wanted = encoder.state_dict()
    tensors = _tensors_for(path, name, wanted)
    if missing := [n for n in wanted if n not in tensors]:
        raise _misfit(path, name, f"it lacks {_some(missing)}", tensors)
    for tensor, value in wanted.items():
        if tensors[tensor].shape != value.shape:
            shapes = tuple(tensors[tensor].shape), tuple(value.shape)
            raise _misfit(path, name, _shape_text(tensor, *shapes), tensors)
    encoder.load_state_dict({n: tensors[n] for n in wanted})


def timm_tensors_of(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file that is to fit a timm model, by the names that timm has for them."""
    return _tensors_for(path, name, timm_shapes(name))


def _tensors_for(path: Path, name: str, wanted: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a file by the names of an encoder.

    A classifier or a projection head that is left over is no fault. More blocks than the encoder
    has are one: the file would fit a part of a deeper model.

    Raises:
        UserError: it has further tensors that are named as those of the encoder but for numbers.
    """
    tensors = strip_prefix(read_tensors(path), wanted)
    forms = {re.sub(r"\d+", "#", each) for each in wanted}
    deeper = [n for n in tensors if n not in wanted and re.sub(r"\d+", "#", n) in forms]
    if deeper:
        raise UserError(
            f"encoder_weights={path} is of a larger model than encoder={name}: it also holds "
            f"{_some(deeper)}; {_likely(tensors, name)}"
        )
    return tensors


def check_taken(path: Path, name: str, backbone: nn.Module, texts: list[str]) -> None:
    """Checks that nothing that the encoder needs was missing in the file.

    What timm's own weights would lack too (a norm that is added, a head) is no fault.

    Args:
        backbone: the timm model, which has taken what it found.
        texts: what timm logged while it loaded them, see `models.encoder.timm_messages`.

    Raises:
        UserError: tensors are missing.
    """
    needed = {_flat(n.removeprefix("model.")) for n in backbone.state_dict()}
    found = [match[1].split(", ") for text in texts if (match := MISSING.search(text))]
    plain = timm_shapes(name)
    missing = [n for names in found for n in names if n in plain and _flat(n) in needed]
    if missing:
        raise _misfit(path, name, f"it lacks {_some(missing)}")


def misfit(path: Path, name: str, error: Exception) -> UserError:
    """The error to raise where timm cannot load the tensors of a file."""
    wrong = WRONG_SHAPE.search(" ".join(str(error).split()))
    if wrong is None:
        return _misfit(path, name, one_line(error))
    theirs, ours = (tuple(map(int, filter(None, wrong[i].split(",")))) for i in (2, 3))
    return _misfit(path, name, _shape_text(wrong[1], theirs, ours))


def _misfit(path: Path, name: str, reason: str, tensors: Mapping | None = None) -> UserError:
    if tensors is None:
        tensors = strip_prefix(read_tensors(path), timm_shapes(name))
    text = f"encoder_weights={path} does not fit encoder={name}: {reason}"
    return UserError(f"{text}; {_likely(tensors, name)}")


def _flat(name: str) -> str:
    return name.replace(".", "_")  # timm's feature extractors rename "layer1.0" to "layer1_0"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _shape_text(tensor: str, theirs: tuple, ours: tuple) -> str:
    return f"{tensor} is {theirs} in the file, {ours} in the encoder"


def _likely(tensors: Mapping[str, Tensor], name: str) -> str:
    """The timm model that the tensors look like, among those with a similar name."""
    import timm

    name = name.split(".")[0]
    for other in difflib.get_close_matches(name, timm.list_models(), n=12, cutoff=0.5):
        shapes = timm_shapes(other)
        body = [n for n in shapes if not n.startswith(("fc.", "head", "classifier"))]
        same = (n in tensors and tuple(tensors[n].shape) == shapes[n] for n in body)
        if other != name and all(same):
            return f"it looks like encoder={other}"
    return f"its first tensor is {next(iter(tensors), 'none')}; name the encoder that it belongs to"


@cache
def timm_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a timm model as it was pretrained, with its head."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(name)
    return {n: tuple(value.shape) for n, value in model.state_dict().items()}


# ---- the hub, an address, a folder --------------------------------------------------------------


def pretrained_file(name: str) -> Path:
    """The file of the weights that timm names for a model: from the cache, else from the network.

    Raises:
        UserError: there are none, or they cannot be fetched; it comes within seconds.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if cfg.hf_hub_id:
        names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else WEIGHT_FILES
        return _hub_file(cfg.hf_hub_id, names, name)
    if not cfg.url:
        raise UserError(
            f"timm has no pretrained weights of {name!r}; use --set encoder_weights=FILE, or train "
            "from scratch with --set pretrained=false"
        )
    url, file_name = (cfg.url, "") if isinstance(cfg.url, str) else cfg.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / (file_name or url.rpartition("/")[2])
    if not path.is_file():
        with _fetching(name):
            import_module("utils.hub").check_server(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
    return path


def _hub_file(place: str, names: Collection[str], encoder: str) -> Path:
    """The first of some files that a repository of the hub has.

    Args:
        place: owner/name, or owner/name@revision.
        encoder: the name that a person gave, for errors.
    """
    with _fetching(encoder):
        repo, _, revision = place.partition("@")
        return import_module("utils.hub").first_file(repo, names, revision or None)


@contextmanager
def _fetching(encoder: str) -> Iterator[None]:
    """Errors of this context are one line that says how to do without the network."""
    try:
        yield
    except Exception as error:  # of the hub, of its client, of the disk
        raise UserError(
            f"cannot fetch pretrained weights of {encoder!r} ({one_line(error)}); use --set "
            f"encoder_weights=FILE, or download/download_encoder.sh {encoder}, or "
            "HF_HUB_OFFLINE=1 with a filled cache (docs/own_encoder.md), or train from scratch "
            "with --set pretrained=false"
        ) from error


@dataclass(frozen=True)
class EncoderSource:
    """What a folder or a repository of the hub holds."""

    encoder: str  # architecture, a name of timm
    weights: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_source(name: str) -> bool:
    """Whether an encoder is named by a folder or a repository of the hub."""
    return name.startswith(SOURCES)


def read_source(name: str, *, with_weights: bool) -> EncoderSource:
    """Reads `config.json` of "local-dir:PATH" or "hf-hub:owner/name", and finds its weights.

    Raises:
        UserError: it cannot be read, or its arguments make another model of the architecture.
    """
    kind, _, place = name.partition(":")
    is_local = kind == "local-dir"
    folder = Path(place).expanduser()
    file = folder / "config.json" if is_local else _hub_file(place, ["config.json"], name)
    values = read_json(file, "name a folder or repository that timm wrote (save_for_hf)")
    import timm

    if not isinstance(values, dict) or not timm.is_model(str(values.get("architecture"))):
        raise UserError(f"{file} names no architecture of timm; use another encoder")
    statistics = values.get("pretrained_cfg", values)  # older files have it all on one level
    arguments = values.get("model_args") or {}
    if not isinstance(statistics, dict) or not isinstance(arguments, dict):
        raise UserError(f"{file} is not a config.json of timm; use another encoder")

    # Arguments that change the tensors would have to stand in every weight file.
    changes = {n: v for n, v in arguments.items() if n not in HEAD_ONLY}
    if changes.pop("in_chans", 3) != 3 or changes:
        raise UserError(
            f"{file} changes the architecture with model_args {', '.join(sorted(arguments))}; "
            "that is not taken: write an encoder class of your own (docs/own_encoder.md)"
        )
    mean, std = (statistics.get(n) or d for n, d in zip(("mean", "std"), IMAGENET, strict=True))
    if not fits([mean, std], tuple[tuple[float, float, float], ...]):
        raise UserError(f"{file} has no mean and std of three numbers; use another encoder")
    weights = None
    if with_weights:
        weights = _weights_in(folder) if is_local else _hub_file(place, WEIGHT_FILES, name)
    return EncoderSource(values["architecture"], weights, tuple(mean), tuple(std))


def _weights_in(folder: Path) -> Path:
    """The weights in a folder: of the usual name, else the only file that may be some."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin", ".pth")]
    if len(found) == 1:
        return found[0]
    names = f"several: {', '.join(p.name for p in found)}" if found else "none"
    raise UserError(
        f"{folder} should hold the weights as {WEIGHT_FILES[0]}, found {names}; name a file with "
        "--set encoder_weights=FILE, or use pretrained=false"
    )
