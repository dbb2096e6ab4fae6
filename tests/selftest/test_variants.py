"""Variants: what is asked for, in words and ids."""

import pytest

from enginegate.errors import OptionError
from enginegate.variants import Precision, Variant, parse_precisions, plan


def test_comma_separated_precisions_keep_their_order_without_repeats():
    assert parse_precisions(["int8,fp16", "fp16"]) == (Precision.INT8, Precision.FP16)


def test_all_is_every_precision():
    assert parse_precisions(["all"]) == tuple(Precision)


def test_unknown_precision_names_the_known_ones():
    with pytest.raises(OptionError, match="unknown precision 'fp8': use fp32, fp16"):
        parse_precisions(["fp8"])


def test_plan_groups_by_model_with_stable_ids():
    variants = plan(["a", "b"], "openvino", [Precision.FP32, Precision.INT8])
    assert [v.id for v in variants] == [
        "a-openvino-fp32",
        "a-openvino-int8",
        "b-openvino-fp32",
        "b-openvino-int8",
    ]
    assert Variant("a", "openvino", Precision.INT8).key == "openvino-int8"
