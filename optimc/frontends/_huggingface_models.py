"""Models of Hugging Face transformers from a folder. For the worker."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.frontends._torch_sources import Described, ModuleModel, dtype_name
from optimc.frontends.huggingface import image_preprocessing, read_config

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
    "embedding": "AutoModel",
}
_OUTPUTS = {"question-answering": ("start_logits", "end_logits")}
_TYPICAL_LENGTHS = (8, 32, 128)
_SHOWN = 5


def _task_module(model: torch.nn.Module, outputs: tuple[str, ...]) -> torch.nn.Module:
    """The model with the outputs of its task alone."""
    import torch

    class TaskModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            answer = self.model(**inputs, return_dict=True)
            return {name: answer[name] for name in outputs}

    return TaskModule()


def _embedding(model: torch.nn.Module, pooling: str, normalize: bool) -> torch.nn.Module:
    """The model with its last hidden state pooled, as sentence-transformers does it."""
    import torch

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            states = self.model(**inputs, return_dict=True).last_hidden_state
            if states.dim() == 4:  # [batch, channels, height, width], of convolutional networks
                states = states.flatten(2).transpose(1, 2)
            mask = inputs.get("attention_mask")
            if mask is None:
                mask = torch.ones_like(states[:, :, 0], dtype=torch.int64)
            vector = _pooled(states, mask, pooling)
            if normalize:
                vector = torch.nn.functional.normalize(vector, dim=-1)
            return {"embedding": vector}

    return Embedding()


def _pooled(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector a sample, [batch, size], of the `states` [batch, length, size] under the mask."""
    import torch

    if pooling == "cls":
        return states[:, 0]
    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "mean":
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "max":
        greatest = states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1)
        # Nothing under the mask: zeros, because the least float overflows when normalized.
        return greatest * (weights.sum(1) > 0)
    # The last token of the mask, whichever side is padded.
    steps = torch.arange(1, states.shape[1] + 1, device=states.device)
    last = (mask * steps).argmax(1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, last).squeeze(1)


def open_folder(
    path: str,
    task: str,
    pooling: str,
    normalize: bool,
    declared: Mapping[str, Mapping[str, Any]],
) -> ModuleModel:
    """The model in the folder `path` for `task`; `declared` gives shapes by input name.

    Attention is computed step by step (`eager`), which exports to plain ONNX operators. Raises
    InputError where transformers does not know the model, or its weights lack a part of it.
    """
    folder = Path(path)
    read_config(folder)
    model, notes = _load(folder, task)
    described = _describe(model, folder, declared)
    described.notes += notes
    module: torch.nn.Module
    if task == "embedding":
        module = _embedding(model, pooling, normalize)
    else:
        module = _task_module(model, _OUTPUTS.get(task, ("logits",)))
    return ModuleModel(module, described)


def _load(folder: Path, task: str) -> tuple[Any, list[str]]:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = getattr(transformers, _CLASSES[task]).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            weights_only=True,
        )
    except Exception as error:
        raise InputError(
            f"transformers {transformers.__version__} cannot load the folder for {task}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="check `task`, and that the folder is whole; or write a `factory`",
        ) from error
    _check_loaded(info, task, folder)
    notes = []
    if info["unexpected_keys"]:
        count = len(info["unexpected_keys"])
        notes.append(f"{count} tensors of the folder have no part in {task}")
    kept = getattr(model.config, "dtype", None)
    stored = read_config(folder).get("dtype") or read_config(folder).get("torch_dtype")
    if stored not in (None, "float32") and kept is not None:
        notes.append(f"weights that are stored as {stored} were read as {dtype_name(kept)}")
    model.config.use_cache = False
    return model, notes


def _check_loaded(info: Mapping[str, Any], task: str, folder: Path) -> None:
    """Weights that are not in the folder would be random: nothing of that is let through."""
    missing = sorted(info["missing_keys"])
    if task == "embedding":  # pooling reads the last hidden state, not this layer over it
        missing = [name for name in missing if not name.startswith("pooler.")]
    misshapen = sorted(str(item[0]) for item in info["mismatched_keys"])
    for names, what in ((missing, "the folder lacks"), (misshapen, "of another shape are")):
        if names:
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise InputError(
                f"{what} {len(names)} tensors that the model needs for {task}: {shown}",
                where=str(folder),
                fix="check `task`: a model that was not trained for it has no weights for it",
            )


def _describe(model: Any, folder: Path, declared: Mapping[str, Mapping[str, Any]]) -> Described:
    config = model.config
    if model.main_input_name == "pixel_values":
        described = _image_inputs(config, folder, declared)
    elif model.main_input_name == "input_ids":
        described = _text_inputs(model, config)
    else:
        raise InputError(
            f"models that take `{model.main_input_name}` are not supported",
            where=str(folder),
            fix="write a function that makes the module, and name it: model: {factory: ...}",
        )
    return described


def _text_inputs(model: Any, config: Any) -> Described:
    parameters = inspect.signature(model.forward).parameters
    types = int(getattr(config, "type_vocab_size", 0) or 0)
    most = {"input_ids": int(config.vocab_size) - 1}
    if "attention_mask" in parameters:
        most["attention_mask"] = 1
    if "token_type_ids" in parameters and types > 1:
        most["token_type_ids"] = types - 1
    least, typical, greatest = _TYPICAL_LENGTHS
    limit = int(getattr(config, "max_position_embeddings", greatest) or greatest)
    lengths = [min(size, limit) for size in (least, typical, greatest)]
    return Described(
        inputs=[(name, "int64", ["batch", "length"]) for name in most],
        values={name: [0, value] for name, value in most.items()},
        dims={"length": lengths},
    )


def _image_inputs(
    config: Any, folder: Path, declared: Mapping[str, Mapping[str, Any]]
) -> Described:
    preprocessing = image_preprocessing(folder)
    shape = (declared.get("pixel_values") or {}).get("shape")
    if shape is None:
        sides = _sides(getattr(config, "image_size", None)) or _sides(
            preprocessing.get("crop_size") or preprocessing.get("size")
        )
        if sides is None:
            raise InputError(
                "neither the config nor preprocessor_config.json says the size of the images",
                where=str(folder),
                fix="declare it: inputs: {pixel_values: {shape: [batch, 3, 224, 224]}}",
            )
        shape = ["batch", int(getattr(config, "num_channels", 3)), *sides]
    values = _pixel_range(preprocessing)
    return Described(
        inputs=[("pixel_values", "float32", list(shape))],
        values={"pixel_values": values} if values else {},
    )


def _sides(size: Any) -> list[int] | None:
    """Height and width."""
    if isinstance(size, int):
        return [size, size]
    if isinstance(size, list | tuple) and len(size) == 2:
        return [int(size[0]), int(size[1])]
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return [int(size["height"]), int(size["width"])]
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return [int(size["shortest_edge"])] * 2
    return None


def _pixel_range(preprocessing: Mapping[str, Any]) -> list[float] | None:
    """The range of normalized pixels, from mean and standard deviation by channel."""
    mean, std = preprocessing.get("image_mean"), preprocessing.get("image_std")
    if not isinstance(mean, list) or not isinstance(std, list) or not all(std):
        return None
    return [
        float(min(-m / s for m, s in zip(mean, std, strict=False))),
        float(max((1 - m) / s for m, s in zip(mean, std, strict=False))),
    ]
