"""Other ways to keep vectors than the product's."""

from typing import Any

import numpy as np
import pytest

from benchmarks.micro.layouts import DTYPES, with_value

ROW = np.array([0.5, -0.25, 1.0, 0.1, -0.7071], np.float16)


def from_bfloat16(blob: bytes) -> Any:
    return np.left_shift(np.frombuffer(blob, "<u2").astype("<u4"), 16).view("<f4")


@pytest.mark.parametrize(
    ("dtype", "size", "read", "tolerance"),
    [
        ("FLOAT16", 2, lambda blob: np.frombuffer(blob, "<f2"), 0),
        ("FLOAT32", 4, lambda blob: np.frombuffer(blob, "<f4"), 0),
        # Of eight bits, the last is rounded; of INT8, half a step of the largest.
        ("BFLOAT16", 2, from_bfloat16, 2**-9),
        ("INT8", 1, lambda blob: np.frombuffer(blob, "i1") / 127, 0.5 / 127 + 1e-6),
    ],
)
def test_a_vector_is_the_same_in_every_type_but_for_rounding(dtype, size, read, tolerance):
    blob = DTYPES[dtype](ROW.astype("<f2").tobytes())

    assert len(blob) == size * len(ROW)
    np.testing.assert_allclose(read(blob), ROW.astype("<f4"), rtol=0, atol=tolerance)


def test_the_value_behind_a_name_is_replaced():
    statement = ["FT.CREATE", "i", "TYPE", "FLOAT16", "M", 16]

    assert with_value("TYPE", "FLOAT32")(statement) == [*statement[:3], "FLOAT32", "M", 16]
    assert statement[3] == "FLOAT16"
