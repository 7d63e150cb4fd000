"""`preprocess: {embed: true}`: the data's transform becomes a part of the model.

Of each input's steps, the last ones that standard ONNX can do (layout, arithmetic) go into the
model; what stands before them (decoding, resizing) stays outside, with the data source. Everything
behind is fed what these steps start from, such as uint8 [n, height, width, 3]: passes, calibration
and engines. The source itself is measured as it came in, with the transform outside, so that a
difference between the two shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.digest import digest_of
from optimc.core.errors import InputError, VerificationError
from optimc.core.model import OnnxModel, load_model
from optimc.core.worker import Limits
from optimc.pipeline.cache import Cache
from optimc.pipeline.data import BuildData
from optimc.pipeline.ingest import Source
from optimc.pipeline.versions import compiler_digest, tool_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.calibration.transforms import Steps
    from optimc.core.model import Signature, TensorSpec
    from optimc.pipeline.recipe.schema import InputSpec, Recipe

    Feeds = Mapping[str, NDArray[Any]]

TOLERANCE = 1e-5
"""Between the source behind the transform and the model that holds it, of each output's scale."""
_SAMPLES = 32


@dataclass(frozen=True)
class Start:
    """What passes, calibration and engines work on: the source, maybe with its transform."""

    model: OnnxModel
    path: Path
    data: BuildData
    inputs: Mapping[str, InputSpec]
    """What is declared of the inputs' values, by name."""
    notes: tuple[str, ...] = ()


def starting_point(
    recipe: Recipe, source: Source, data: BuildData, cache: Cache, limits: Limits
) -> Start:
    """The source itself, or with `preprocess.embed` a model that holds the transform.

    Raises InputError where there is no transform to embed or the splits differ in it, and
    VerificationError where the model with the transform does not give the source's outputs.
    """
    if not recipe.preprocess.embed:
        return Start(source.model, source.path, data, recipe.inputs)
    steps, splits, specs = _outside(recipe, source.model.signature, data)
    dtypes = {name: spec.dtype for name, spec in specs.items()}
    model = _embedded(source, steps, dtypes, cache)
    inputs = {**recipe.inputs, **{name: _declared(spec) for name, spec in specs.items()}}
    if data.random:
        splits["calibration"] = _random(recipe, model, data, inputs)
    raw = replace(data, splits=splits)
    proof = _proof(source, model, raw, steps, cache, limits)
    assert model.path is not None
    return Start(model, model.path, raw, inputs, _notes(model, steps, proof))


def check_embedding(recipe: Recipe, signature: Signature, data: BuildData) -> None:
    """Raises InputError for what `starting_point` refuses before it works on the model."""
    if recipe.preprocess.embed:
        _outside(recipe, signature, data)


def _outside(
    recipe: Recipe, signature: Signature, data: BuildData
) -> tuple[dict[str, Steps], dict[str, Dataset], dict[str, TensorSpec]]:
    """The steps to embed, the splits before these steps, and what the inputs then are."""
    steps = _common_steps(recipe, signature)
    splits = _raw_splits(recipe, data, steps)
    return steps, splits, _raw_specs(recipe, splits, steps)


def _embedded(
    source: Source, steps: Mapping[str, Steps], dtypes: Mapping[str, str], cache: Cache
) -> OnnxModel:
    """The source with its transform, stored."""
    from optimc.frontends.embedding import embed

    key = digest_of(
        ["embed", source.model.digest, source.model.names_digest, dtypes],
        [_plain(steps), compiler_digest(), tool_versions(["onnx-ir"])],
    )
    entry = cache.get("embed", key)
    if entry is None:
        entry = cache.put(
            "embed", key, lambda out: embed(source.model, steps, dtypes).save(out / "model")
        )
    model = load_model(entry / "model")
    assert isinstance(model, OnnxModel)
    return model


def _proof(
    source: Source,
    model: OnnxModel,
    raw: BuildData,
    steps: Mapping[str, Steps],
    cache: Cache,
    limits: Limits,
) -> Mapping[str, Any]:
    """How far the model is from the source behind the transform, on raw samples.

    Raises VerificationError where it is too far.
    """
    key = digest_of(
        ["embed-proof", source.model.digest, model.digest, raw.calibration.digest, _plain(steps)],
        [compiler_digest(), tool_versions(["onnxruntime"])],
    )
    entry = cache.get("embed-proof", key)
    if entry is None:

        def write(out: Path) -> None:
            proof = _compared(source, model, raw.samples(_SAMPLES), steps, limits)
            (out / "proof.json").write_text(json.dumps(proof), encoding="utf-8")

        entry = cache.put("embed-proof", key, write)
    proof: Mapping[str, Any] = json.loads((entry / "proof.json").read_text(encoding="utf-8"))
    return proof


def _plain(steps: Mapping[str, Steps]) -> dict[str, list[Any]]:
    """The steps as plain data, for keys."""
    return {
        name: [s if isinstance(s, str) else s.model_dump(mode="json") for s in listed]
        for name, listed in steps.items()
    }


def _common_steps(recipe: Recipe, signature: Signature) -> dict[str, Steps]:
    """By input: the last steps that can be embedded, which are those of every split."""
    from optimc.calibration.transforms import per_input
    from optimc.frontends.embedding import is_embeddable

    names = [spec.name for spec in signature.inputs]
    found: dict[str, dict[str, Steps]] = {}
    for split, options in (recipe.data.splits if recipe.data else {}).items():
        each = per_input(getattr(options, "transform", []), names)
        found[split] = {}
        for name, steps in each.items():
            first = len(steps)
            while first and is_embeddable(steps[first - 1]):
                first -= 1
            if steps[first:]:
                found[split][name] = steps[first:]
    where = recipe.where("preprocess", "embed")
    if not any(found.values()):
        raise InputError(
            "the data have no transform that can be put into the model",
            where=where,
            fix="name data with a `transform` of layout and arithmetic, or leave `preprocess` out",
        )
    (one, steps_of_one), *others = found.items()
    for other, steps_of_other in others:
        if steps_of_other != steps_of_one:
            raise InputError(
                f"data.{one} and data.{other} have different transforms, and the model can hold"
                " only one",
                where=where,
                fix="give all splits the same transform",
            )
    return steps_of_one


def _raw_splits(recipe: Recipe, data: BuildData, steps: Mapping[str, Steps]) -> dict[str, Dataset]:
    """The splits of the recipe, fed as they are before the embedded steps."""
    from optimc.calibration.transforms import per_input

    assert recipe.data is not None
    splits: dict[str, Dataset] = {}
    for split, options in recipe.data.splits.items():
        names = list(data.splits[split].sample_specs())
        outside = {
            name: every[: len(every) - len(steps.get(name, ()))]
            for name, every in per_input(getattr(options, "transform", []), names).items()
        }
        raw = options.model_copy(update={"transform": outside})
        splits[split] = raw.open(recipe.folder, recipe.seed)
    return splits


def _random(
    recipe: Recipe, model: OnnxModel, data: BuildData, inputs: Mapping[str, InputSpec]
) -> Dataset:
    """Seeded raw samples where the recipe names no calibration data."""
    from optimc.calibration.random_data import RandomDataset

    bounds = {n: bound for n, spec in inputs.items() if (bound := spec.range or spec.values)}
    sizes = {name: dim.typical for name, dim in data.dims.items()}
    samples = len(data.calibration)
    return RandomDataset(model.signature, sizes, bounds, recipe.seed, samples)


def _raw_specs(
    recipe: Recipe, splits: Mapping[str, Dataset], steps: Mapping[str, Steps]
) -> dict[str, TensorSpec]:
    """What the embedded inputs take. Raises InputError where splits differ or hold no numbers."""
    found: dict[str, TensorSpec] = {}
    where = recipe.where("preprocess", "embed")
    for split, dataset in splits.items():
        for name in steps:
            spec = dataset.sample_specs()[name]
            if not spec.dtype.startswith(("uint", "int", "float")):
                raise InputError(
                    f"data.{split} stores `{name}` as {spec.dtype}, which no step can start from",
                    where=where,
                    fix="store the samples as uint8, another integer or float32",
                )
            known = found.setdefault(name, spec)
            if known.dtype != spec.dtype:
                raise InputError(
                    f"`{name}` is {known.dtype} in one split and {spec.dtype} in data.{split}",
                    where=where,
                    fix="store all splits in the type that serving will send",
                )
    return found


def _declared(spec: TensorSpec) -> InputSpec:
    """The values that an embedded input takes: all of 8 bits, 0 to 255 for wider integers."""
    from optimc.pipeline.recipe.schema import InputSpec

    if spec.dtype == "int8":
        return InputSpec(values=(-128, 127))
    return InputSpec() if spec.dtype.startswith("float") else InputSpec(values=(0, 255))


def _compared(
    source: Source,
    model: OnnxModel,
    samples: Sequence[Feeds],
    steps: Mapping[str, Steps],
    limits: Limits,
) -> dict[str, Any]:
    """Raises VerificationError where the outputs differ by more than `TOLERANCE`."""
    from optimc.calibration.transforms import apply
    from optimc.pipeline.compare import compare_outputs
    from optimc.pipeline.oracle import Oracle
    from optimc.pipeline.probes import Probe

    assert model.path is not None
    outside = [
        {name: apply(steps.get(name, []), array) for name, array in feeds.items()}
        for feeds in samples
    ]
    with Oracle([Probe("sample", feeds, True) for feeds in outside], limits) as oracle:
        expected = oracle.outputs(source.model.digest, source.path)
        names = oracle.stable_outputs(source.model, source.path)
    with Oracle([Probe("sample", feeds, True) for feeds in samples], limits) as oracle:
        difference = compare_outputs(expected, oracle.run(model.path), names)
    if difference.broken is not None or difference.max_rel > TOLERANCE:
        raise VerificationError(
            "the model with its transform does not give what the source gives behind it: "
            + (difference.broken or f"outputs differ by {difference.max_rel:.3g} of their scale"),
            where="preprocess.embed",
            fix="leave `preprocess` out, and report this with the recipe's transform",
        )
    return {"max_rel": difference.max_rel, "samples": len(samples)}


def _notes(
    model: OnnxModel, steps: Mapping[str, Steps], proof: Mapping[str, Any]
) -> tuple[str, ...]:
    """What was embedded, for the report."""
    specs = {spec.name: spec for spec in model.signature.inputs}
    error = f"{proof['max_rel']:.2g}" if proof["max_rel"] else "0"
    return tuple(
        f"embedded in the model: {', '.join(map(_step_text, listed))}; it takes {specs[name]};"
        f" on {proof['samples']} raw samples outputs differ from the transform outside by {error}"
        " of their scale"
        for name, listed in steps.items()
    )


def _step_text(step: Any) -> str:
    if isinstance(step, str):
        return step
    ((name, value),) = step.model_dump().items()
    return f"{name} {json.dumps(value)}"
