from decimal import Decimal

import numpy as np
import pytest

from llm_cache._core.vectors import check_vector, check_vectors, salted_blob
from llm_cache.errors import InvalidEmbedding

SIGNS = [1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0, 1.0]


def check(vectors: object, count: int = 1, dimensions: int | None = 3) -> np.ndarray:
    return check_vectors(vectors, count=count, dimensions=dimensions, model_id="e")


def check_one(values: object) -> np.ndarray:
    return check_vector(values, dimensions=3, model_id="e")  # type: ignore[arg-type]


def stored(vector: np.ndarray, scope: str) -> np.ndarray:
    return np.frombuffer(salted_blob(vector, scope), dtype="<f2").astype(np.float64)


@pytest.mark.parametrize("given", [[[3, 0, 4]], np.array([[3, 0, 4]], np.float64), [(3, 0, 4)]])
def test_any_matrix_of_numbers_becomes_unit_rows(given):
    rows = check(given)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0, 0.8]])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([[1, 2]], "2 dimensions instead of 3"),
        ([[1, 2, 3], [1, 2, 3]], r"expected 1 row\(s\)"),
        ([1, 2, 3], r"shape \(3,\)"),
        ([], "shape"),
        ([[]], "shape"),
        ([[1, float("nan"), 3]], "NaN"),
        ([[1, float("inf"), 3]], "NaN, infinite"),
        ([[0, 0, 0]], "zeros"),
        ([[1e-9, 0, 0]], "zeros"),
        ("abc", "array of numbers"),
        (None, "array of numbers"),
        ([[1, 2, 1j]], "array of numbers.*complex"),
        ([["1", "2", "3"]], "array of numbers"),
        ([[True, False, True]], "array of numbers.*bool"),
        ([[1e30, 1, 1]], "huge"),
        ([[1, 2], [3]], "array of numbers"),
    ],
)
def test_unusable_vectors_are_refused(given, says):
    with pytest.raises(InvalidEmbedding, match=says):
        check(given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([1.0, 2.0], "2 dimensions instead of 3"),
        ([], "shape"),
        ([1.0, float("nan"), 3.0], "NaN"),
        ([1.0, float("inf"), 3.0], "NaN, infinite"),
        ([1e30, 1.0, 1.0], "huge"),
        ([1e39, 1.0, 1.0], "huge"),
        ([0.0, 0.0, 0.0], "zeros"),
        ([1e-9, 0.0, 0.0], "zeros"),
        ([0.5, 10**400, 0.5], "array of numbers"),
        ([0.5, 1j, 0.5], "array of numbers.*complex"),
        ([0.5, np.complex128(1j), 0.5], "array of numbers.*complex"),
        ([0.5, Decimal("0.5"), 0.5], "array of numbers"),
        ([0.5, "0.5", 0.5], "array of numbers"),
        ([0.5, None, 0.5], "array of numbers"),
        ([True, False, True], "array of numbers.*bool"),
        ([[0.5], [0.5], [0.5]], "shape"),
        (0.5, "shape"),
    ],
)
def test_one_unusable_vector_is_refused_as_it_is_among_many(given, says):
    with pytest.raises(InvalidEmbedding, match=says):
        check_one(given)
    with pytest.raises(InvalidEmbedding, match=says):
        check([given])


@pytest.mark.parametrize(
    "given",
    [
        [3.0, 0.0, 4.0],
        [3, 0, 4],
        [3.0, 0, np.float32(4)],
        (3.0, 0.0, 4.0),
        np.array([3, 0, 4]),
        np.array([3.0, 0.0, 4.0, 9.0])[:3],
    ],
)
def test_one_vector_is_what_it_is_among_many(given):
    unit = check_one(given)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [0.6, 0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(unit, check([given])[0], rtol=1e-6)


def test_any_length_is_taken_where_none_is_known():
    assert check([[1, 0]], dimensions=None).shape == (1, 2)


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "<i1", "<u2"])
def test_vectors_of_any_number_type_and_stride_are_the_same(kind):
    wide = np.array([[3, 9, 0, 9, 4, 9]], kind)
    np.testing.assert_allclose(check(wide[:, ::2]), [[0.6, 0, 0.8]])
    np.testing.assert_allclose(check(np.asfortranarray(wide)[:, ::2]), [[0.6, 0, 0.8]])


@pytest.mark.parametrize("stride", [1, 2, -1])
def test_salted_bytes_do_not_depend_on_the_stride(stride):
    row = np.arange(16, dtype=np.float32)[::stride]
    assert salted_blob(row, "scope") == salted_blob(row.copy(), "scope")


def test_salt_keeps_cosines_within_a_scope_and_quarters_them_across():
    rng = np.random.default_rng(0)
    a = check(rng.standard_normal((1, 384)), dimensions=384)[0]
    b = check([a + 0.02 * rng.standard_normal(384)], dimensions=384)[0]

    assert stored(a, "s") @ stored(b, "s") == pytest.approx(float(a @ b), abs=0.001)
    assert stored(a, "s") @ stored(a, "t") == pytest.approx(0.25, abs=0.2)


def test_salt_is_the_same_in_every_process():
    vector = np.ones(8, np.float32)
    assert stored(vector, "scope").tolist() == SIGNS
