"""Policy files: what they may say, and how mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimc.core.errors import InputError
from optimc.pipeline.regression.policy import Policy, load_policy, policy_schema


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_limit_is_read_and_named(tmp_path: Path) -> None:
    text = """\
cells: [int8/*]
drop: {top1: 0.005}
metrics: {top1: 0.9}
slowdown: 0.02
latency_ms: {p99: 12}
throughput_per_s: 100
size_mb: 5
size_growth: 0.1
memory_mb: 500
memory_growth: 0
false_alarms: 0.01
at_most: 2 min
"""
    policy, sha256 = load_policy(written(tmp_path, text))
    assert policy.cells == ("int8/*",)
    assert policy.at_most == 120
    assert policy.false_alarms == 0.01
    assert policy.limits == {
        "drop.top1": 0.005,
        "metrics.top1": 0.9,
        "latency_ms.p99": 12,
        "slowdown": 0.02,
        "throughput_per_s": 100,
        "size_mb": 5,
        "size_growth": 0.1,
        "memory_mb": 500,
        "memory_growth": 0,
    }
    assert len(sha256) == 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "slowdwn: 0.02\n",
            r"policy.yaml:1:1: unknown key `slowdwn`[\s\S]*did you mean `slowdown`",
        ),
        ("size_mb: 1\nslowdown: fast\n", r"policy.yaml:2:11: slowdown: .*a number"),
        ("slowdown: -0.1\n", r"policy.yaml:1:11: slowdown: .*at least 0"),
        ("slowdown: .nan\n", r"policy.yaml:1:11"),
        ("slowdown: 0.1\nfalse_alarms: 0.5\n", r"policy.yaml:2:15: false_alarms: .*at most 0.05"),
        ("slowdown: 0.1\nat_most: 4\n", r"policy.yaml:2:10: at_most: not a duration"),
        ("latency_ms: {p42: 1}\n", r"policy.yaml:1:14"),
        ("slowdown: 0.1\nslowdown: 0.2\n", r"policy.yaml:2:1"),
        ("cells: [int8/*]\n", r"policy.yaml:1:1: the policy sets no limit"),
        ("", r"policy.yaml:1:1: a policy is a mapping of limits; this is empty"),
        ("- slowdown\n", r"a policy is a mapping of limits; this is a list"),
        ("slowdown: [\n", r"policy.yaml:2:1: a bracket is not closed"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_policy(written(tmp_path, text))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_policy(tmp_path / "policy.yaml")
    with pytest.raises(InputError, match="is no file"):
        load_policy(tmp_path)
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_policy(path)
    path.write_text("# " + "x" * 100_001)
    with pytest.raises(InputError, match="more than 100,000 bytes"):
        load_policy(path)


def test_the_schema_names_every_key() -> None:
    schema = json.loads(policy_schema())
    assert set(schema["properties"]) == set(Policy.model_fields)
    assert schema["additionalProperties"] is False
    assert all("description" in value for value in schema["properties"].values())
