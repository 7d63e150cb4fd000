"""What holds for every pass, as a pytest class to subclass.

    class TestFoldBatchnorm(PassContract):
        passes = (FoldBatchnorm(),)

Every test looks at each of `passes` on each of `models()`; those that look at one run share
it, for another test asks that all runs are alike. Passes that read SPEC or CALIBRATION override
`spec` and `calibration`. A model on which a pass raises PreconditionError is one where it cannot
run: the contract then asks for a message with a remedy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from optimc.core.errors import PreconditionError
from optimc.core.model import OnnxModel
from optimc.core.passes import Calibration, EffectKind, Pass, PassResult, Training
from optimc.testing.runs import run_model, run_pass, seeded_feeds

if TYPE_CHECKING:
    import pytest

    from optimc.core.targets import TargetSpec
    from optimc.testing.runs import Feeds

SECTIONS = ("Rewrites", "Refuses", "Accuracy", "Options")


class PassContract:
    """The suite; see the module docstring."""

    passes: ClassVar[Sequence[Pass]] = ()
    """The pass with each set of options that is worth testing."""

    def models(self) -> Mapping[str, OnnxModel]:
        """The models by name; they must be as the ONNX front end leaves them."""
        from optimc.testing.graphs import small_models

        return small_models()

    def spec(self) -> TargetSpec | None:
        """The target's data, for passes that read SPEC."""
        return None

    def calibration(self, model: OnnxModel) -> Calibration | None:
        """Statistics of `model`, for passes that read CALIBRATION."""
        return None

    def quantized_from(self, model: OnnxModel) -> OnnxModel | None:
        """The float model that `model` was quantized from, for passes that read FLOAT."""
        return None

    def training(self, model: OnnxModel) -> Training | None:
        """Samples for `model`, for passes that read TRAINING."""
        return None

    def feeds(self, model: OnnxModel) -> Sequence[Feeds]:
        """The inputs on which outputs are compared."""
        return seeded_feeds(model)

    # The tests. Each runs over `passes` and, where it takes `name`, over `models()`.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Makes one test of each pass and model."""
        if "pass_" in metafunc.fixturenames:
            metafunc.parametrize("pass_", self.passes, ids=[_id(p) for p in self.passes])
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", sorted(self.models()))

    def test_docstring_has_its_sections(self, pass_: Pass) -> None:
        """The docstring is the user's page."""
        page = type(pass_).__doc__ or ""
        missing = [name for name in SECTIONS if not re.search(rf"^\s*{name}:", page, re.MULTILINE)]
        assert not missing, f"{type(pass_).__name__} has no section {missing} in its docstring"

    def test_options_survive_a_round_trip(self, pass_: Pass) -> None:
        """Recipes, cache keys and locks keep the options as JSON."""
        again = type(pass_).model_validate_json(json.dumps(pass_.options()))
        assert again == pass_
        undocumented = [n for n, f in type(pass_).model_fields.items() if not f.description]
        assert not undocumented, f"options without a docstring: {undocumented}"

    def test_modified_is_true_to_fact(self, pass_: Pass, name: str) -> None:
        """`modified`, the digest and the rewrites tell the same."""
        model = self.models()[name]
        result = self._made(pass_, name)
        changed = _fresh_digest(result.model) != _fresh_digest(model)
        assert result.modified == changed, (
            f"modified is {result.modified}, the digest says {changed}"
        )
        assert bool(result.rewrites) == changed, f"{len(result.rewrites)} rewrites are numbered"

    def test_second_run_changes_nothing(self, pass_: Pass, name: str) -> None:
        """A pass comes to its end in one run."""
        first = self._made(pass_, name).model
        again = self._run(pass_, _onnx(first))
        assert not again.modified, f"a second run did {again.rewrites[:5]}"
        assert again.model.digest == first.digest

    def test_same_run_gives_the_same_result(self, pass_: Pass, name: str) -> None:
        """Names included: calibration and reports go by them."""
        results = [self._run(pass_, self.models()[name]).model for _ in range(2)]
        assert len({r.digest for r in results}) == 1
        assert len({r.names_digest for r in results}) == 1

    def test_interface_stays(self, pass_: Pass, name: str) -> None:
        """Names, order, dtypes and dims of inputs and outputs; float types where it says so."""
        model = self.models()[name]
        before, after = model.signature, self._made(pass_, name).model.signature
        if not pass_.changes_dtypes:
            assert after == before
            return
        for old, new in zip(
            (*before.inputs, *before.outputs), (*after.inputs, *after.outputs), strict=True
        ):
            assert (new.name, new.shape) == (old.name, old.shape)
            assert new.dtype == old.dtype or {"float"} == {
                d.rstrip("0123456789") for d in (old.dtype, new.dtype)
            }

    def test_input_stays_as_it_is(self, pass_: Pass, name: str) -> None:
        """A pass gets a clone with shared weights: neither the graph nor a weight may change."""
        model = self.models()[name]
        before = _contents(model)
        self._run(pass_, model)
        assert _contents(model) == before

    def test_checker_passes(self, pass_: Pass, name: str) -> None:
        """The result is valid ONNX, by the checker with strict shape inference."""
        import onnx
        import onnx_ir

        result = _onnx(self._made(pass_, name).model)
        onnx.checker.check_model(onnx_ir.to_proto(result.ir), full_check=True)

    def test_outputs_agree(self, pass_: Pass, name: str) -> None:
        """On seeded inputs, as far as the pass's effect promises."""
        self._compare(pass_, self.models()[name], _onnx(self._made(pass_, name).model))

    def test_provenance_is_kept(self, pass_: Pass, name: str) -> None:
        """Source names are those of the input; where numbers must agree, each tells the truth."""
        model = self.models()[name]
        result = _onnx(self._made(pass_, name).model)
        known = set(model.provenance.values())
        invented = set(result.provenance.values()) - known
        assert not invented, f"source names that the input does not have: {sorted(invented)[:5]}"
        lost = [
            spec.name
            for spec in (*model.signature.inputs, *model.signature.outputs)
            if spec.name in model.provenance and spec.name not in result.provenance
        ]
        assert not lost, f"inputs or outputs without their source name: {lost}"
        if pass_.effect.kind is not EffectKind.LOSSY:
            self._compare_values(pass_, model, result)

    def test_limit_stops_after_the_first_rewrites(self, pass_: Pass, name: str) -> None:
        """``--limit PASS=N`` does the first N rewrites alone; every prefix is a whole model."""
        model = self.models()[name]
        whole = self._made(pass_, name)
        total = len(whole.rewrites)
        nothing = self._run(pass_, model, limit=0)
        assert not nothing.modified
        assert _fresh_digest(nothing.model) == _fresh_digest(model), "limit 0 changed the model"
        for limit in sorted({1, total // 2, total - 1} - {0, -1, total}):
            part = self._run(pass_, model, limit=limit)
            assert part.rewrites == whole.rewrites[:limit]
            self._compare(pass_, model, _onnx(part.model))
        assert self._run(pass_, model, limit=total).model.digest == whole.model.digest

    def test_preserved_analyses_hold(self, pass_: Pass, name: str) -> None:
        """What `preserves` declares is the same before and after."""
        model = self.models()[name]
        for kind in sorted(pass_.preserves, key=str):
            after = kind.compute(_onnx(self._made(pass_, name).model))
            assert after == kind.compute(model), f"{kind.__name__} is not preserved"

    def test_refusals_give_reasons(self, pass_: Pass, name: str) -> None:
        """A refusal says which rule, where, and why in words."""
        for refusal in self._made(pass_, name).refusals:
            assert refusal.rule
            assert refusal.where, f"{refusal.rule}: no place"
            assert len(refusal.reason.split()) >= 3, f"{refusal}: that is no reason"

    # Helpers.

    _results: ClassVar[dict[tuple[type[PassContract], str, str], PassResult]] = {}

    def _made(self, pass_: Pass, name: str) -> PassResult:
        """What `pass_` makes of a model, made once: not to be changed."""
        key = (type(self), _id(pass_), name)
        if key not in self._results:
            self._results[key] = self._run(pass_, self.models()[name])
        return self._results[key]

    def _run(self, pass_: Pass, model: OnnxModel, *, limit: int | None = None) -> PassResult:
        import pytest

        try:
            return run_pass(
                pass_,
                model,
                spec=self.spec(),
                calibration=self.calibration(model),
                quantized_from=self.quantized_from(model),
                training=self.training(model),
                limit=limit,
            )
        except PreconditionError as error:
            assert error.fix, f"the precondition gives no remedy: {error}"
            pytest.skip(f"cannot run on this model: {error.what}")

    def _compare(self, pass_: Pass, before: OnnxModel, after: OnnxModel) -> None:
        names = [spec.name for spec in before.signature.outputs]
        self._compare_outputs(pass_, before, after, names)

    def _compare_values(self, pass_: Pass, before: OnnxModel, after: OnnxModel) -> None:
        """Each value that claims a source name has to equal the value of that name."""
        computed, known = _computed_values(after), _computed_values(before)
        values = {v: s for v, s in after.provenance.items() if v in computed and s in known}
        self._compare_outputs(
            pass_,
            _with_outputs(before, sorted(set(values.values()))),
            _with_outputs(after, sorted(values)),
            values,
        )

    def _compare_outputs(
        self,
        pass_: Pass,
        before: OnnxModel,
        after: OnnxModel,
        names: Sequence[str] | Mapping[str, str],
    ) -> None:
        """Compares outputs; a mapping `names` gives for names of `after` those of `before`."""
        from optimc.pipeline.compare import compare_outputs
        from optimc.pipeline.judging import aligned

        pairs = names if isinstance(names, Mapping) else {name: name for name in names}
        feeds = self.feeds(before)
        expected = run_model(before, feeds)
        actual = run_model(after, feeds)
        for name, source in pairs.items():
            wanted = [{name: run[source]} for run in expected]
            found = aligned(wanted, actual, after.signature) if pass_.changes_dtypes else actual
            difference = compare_outputs(wanted, found, [name])
            effect = pass_.effect
            assert difference.broken is None, f"{source}: {difference.broken}"
            if effect.kind is EffectKind.EXACT:
                assert difference.bit_equal, f"{source}: differs by {difference.max_abs:.3g}"
            elif effect.kind is EffectKind.TOLERANCE:
                assert difference.max_rel <= effect.bound, (
                    f"{source}: {difference.max_rel:.3g} of its scale, bound {effect.bound:.3g}"
                )
            else:
                assert difference.sqnr_db >= effect.bound, (
                    f"{source}: SQNR {difference.sqnr_db:.1f} dB, bound {effect.bound:.1f} dB"
                )


def _id(pass_: Pass) -> str:
    given = {name: getattr(pass_, name) for name in sorted(pass_.model_fields_set)}
    return ",".join([pass_.pass_name(), *(f"{name}={value}" for name, value in given.items())])


def _onnx(model: Any) -> OnnxModel:
    assert isinstance(model, OnnxModel)
    return model


def _fresh_digest(model: Any) -> str:
    return str(_onnx(model).sealed().digest)


def _contents(model: OnnxModel) -> str:
    """A hash of everything that the model serializes to, weights read anew."""
    import onnx_ir

    return hashlib.sha256(
        onnx_ir.to_proto(model.ir).SerializeToString(deterministic=True)
    ).hexdigest()


def _computed_values(model: OnnxModel) -> set[str]:
    """The tensors that nodes of the main graph compute; those of subgraphs cannot be read out."""
    import onnx_ir

    values = [value for node in model.ir.graph for value in node.outputs]
    return {v.name for v in values if v.name and isinstance(v.type, onnx_ir.TensorType)}


def _with_outputs(model: OnnxModel, names: Sequence[str]) -> OnnxModel:
    """A copy of `model` that also gives the values `names` of its main graph as outputs."""
    clone = model.clone()
    graph = clone.ir.graph
    given = {value.name for value in graph.outputs}
    found = {v.name: v for v in graph.inputs} | {v.name: v for n in graph for v in n.outputs}
    found.update(graph.initializers)
    graph.outputs.extend(found[name] for name in names if name not in given)
    return clone
