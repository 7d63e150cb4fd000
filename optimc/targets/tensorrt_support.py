"""What TensorRT's ONNX parser takes, as data by release.

From the operator tables of onnx-tensorrt: what its table for 10.15 lists as unsupported, the types
and the restrictions there; the opset guide of 11 for the newest opset. What 10.15 lists and the
table of 9.2 does not yet is noted under `FIRST_LISTED`: an older release may lack it.
"""

from __future__ import annotations

from dataclasses import dataclass

Release = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Parser:
    """One release's parser."""

    release: Release
    max_opset: int

    def __str__(self) -> str:
        return ".".join(map(str, self.release))


PARSERS = (Parser((10, 12), 22), Parser((10, 15), 24), Parser((11, 4), 25))
"""The releases that are linted for. A model has to pass the oldest one to run on all."""


def parser_of(release: Release | None) -> Parser:
    """The newest known parser up to `release`; the oldest where that is not known."""
    known = [parser for parser in PARSERS if release is not None and parser.release <= release]
    return known[-1] if known else PARSERS[0]


FIRST_LISTED: dict[str, Release] = {
    "Attention": (10, 15),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "Swish": (11, 0),
    "TensorScatter": (10, 15),
}

_UNSUPPORTED = """
    AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad
    Col2Im Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder
    MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss
    Optional OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch
    SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
    SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer
    StringSplit TfIdfVectorizer Unique
"""
UNSUPPORTED = frozenset(_UNSUPPORTED.split())
"""Operators of the default domain without an importer."""

_FLOATS_ONLY = """
    AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose CumSum Einsum Elu Erf Exp
    Floor GRU Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish
    InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax MatMul MaxPool
    PRelu Reciprocal Round Selu Sigmoid Softmax Softplus Sqrt Tanh
"""
FLOATS_ONLY = frozenset(_FLOATS_ONLY.split())
"""Operators whose first input has to be float32, float16 or bfloat16."""

CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    "CumSum": (1,),
    "OneHot": (1,),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}
"""Inputs that must be constants when the engine is built."""

TYPES = frozenset(
    {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool", "int4"}
    | {"float8e4m3fn", "float4e2m1"}
)
"""Element types that the parser imports."""

SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2),
    "Tile": (1,),
    "TopK": (1,),
}
"""Inputs whose values decide the output's shape."""

_SHAPE_ARITHMETIC = """
    Add Cast Concat Div Gather Identity Max Min Mul Neg Reshape Slice Squeeze Sub Unsqueeze
"""
SHAPE_ARITHMETIC = frozenset(_SHAPE_ARITHMETIC.split())
"""Operators through which values pass on their way to a shape."""

DATA_DEPENDENT = frozenset({"NonMaxSuppression", "NonZero"})
"""Operators whose output's size the data decide."""

GREATEST_TOPK = 3840
