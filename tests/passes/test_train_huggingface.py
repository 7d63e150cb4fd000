"""A folder of transformers as the teacher of `train`: a tiny random BERT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from optimc.calibration.npz import NpzSource
from optimc.calibration.sample_store import store_samples
from optimc.core.errors import InputError, PreconditionError
from optimc.frontends.huggingface import Task
from optimc.passes._train_options import Teacher, TeacherTask
from optimc.passes.train import Train
from optimc.testing.workshops import TorchTrial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optimc.core.workbench import Workbench

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

WORDS, LENGTH, WIDTH = 40, 6, 16


class Data:
    """48 random sentences; a `core.passes.Training`."""

    digest = "sentences"

    def __init__(self, folder: Path, *names: str) -> None:
        rng = np.random.default_rng(0)
        ids = rng.integers(0, WORDS, (48, LENGTH))
        arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        np.savez(folder / "sentences.npz", **arrays)  # type: ignore[arg-type]
        inputs = {name: name for name in names}
        source = NpzSource(npz="sentences.npz", inputs=inputs, labels=None)
        store_samples(source.open(folder, 0), folder / "samples")
        self._folder = folder / "samples"

    def stored(self) -> Path:
        """The folder."""
        return self._folder


def student() -> Any:
    """int64 [n, length] to `sentence_embedding` [n, 16]."""

    class Student(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words = torch.nn.Embedding(WORDS, WIDTH)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            mask = attention_mask[..., None].float()
            pooled = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
            return {"sentence_embedding": pooled}

    return Student()


@pytest.fixture
def trial(tmp_path: Path) -> TorchTrial:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "teacher")

    def prepare(bench: Workbench) -> None:
        source = bench._reopen

        def reopen(kind: str, options: Mapping[str, Any]) -> Any:
            from optimc.frontends.torch_service import open_source

            return open_source(kind, options) if kind else source(kind, options)

        bench._reopen = reopen

    ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made = TorchTrial(student, example, tmp_path)
    made.training = Data(tmp_path, "input_ids", "attention_mask")
    made.prepare = prepare
    return made


TEACHER = {"hf": "teacher", "task": "embedding", "normalize": True}


def train(trial: TorchTrial, **teacher: Any) -> Any:
    losses = [{"embedding": {"kind": "mse"}}]
    options = {"epochs": 12, "batch": 16, "optimizer": "adam", "learning_rate": 0.1, "threads": 1}
    pass_ = Train(**options, distill={"teacher": {**TEACHER, **teacher}, "losses": losses})
    return pass_.run(trial.model, trial.context())


def test_a_student_learns_the_embeddings_of_a_folder(trial: TorchTrial) -> None:
    stats = train(trial).stats
    assert float(stats["last_loss"]) < 0.5 * float(stats["first_loss"])
    # Without normalization the teacher's vectors are longer, and so is what is to be learned.
    longer = train(trial, normalize=False).stats
    assert float(longer["first_loss"]) > 2 * float(stats["first_loss"])


def test_the_folder_decides_the_result(trial: TorchTrial) -> None:
    pass_ = Train(distill={"teacher": TEACHER})
    names = {path.name for path in pass_.files(trial.folder)}
    assert {"config.json", "model.safetensors"} <= names
    missing = Train(distill={"teacher": {"hf": "nowhere", "task": "embedding"}})
    with pytest.raises(PreconditionError, match=r"nowhere/config\.json is not there"):
        missing.check(trial.model, trial.context())


def test_an_input_that_the_data_lack_is_named(trial: TorchTrial, tmp_path: Path) -> None:
    class Counted(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(WORDS, WIDTH)

        def forward(self, input_ids: Any) -> Any:
            return {"sentence_embedding": self.words(input_ids).mean(1)}

    (tmp_path / "ids").mkdir()
    trial.make, trial.example = Counted, {"input_ids": trial.example["input_ids"]}
    trial.training = Data(tmp_path / "ids", "input_ids")
    with pytest.raises(InputError, match="the teacher has the input `attention_mask`"):
        train(trial)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"hf": "a"}, "`hf` and `task` belong together"),
        ({"task": "embedding", "onnx": "a"}, "`hf` and `task` belong together"),
        ({"hf": "a", "task": "embedding", "onnx": "b"}, "one of the three"),
        ({"hf": "a", "task": "image-classification", "pooling": "cls"}, "`task: embedding`"),
        ({"hf": "a", "task": "embedding", "arguments": {"b": 1}}, "belong to `factory`"),
        ({"hf": "a", "task": "poetry"}, "embedding"),
    ],
)
def test_what_does_not_go_together_is_said(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Teacher(**teacher)


def test_the_tasks_are_those_of_models() -> None:
    assert get_args(TeacherTask) == get_args(Task)
