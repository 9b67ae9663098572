import math
import subprocess
import sys
from functools import cache

import pytest

from ttmoe.errors import InputError
from ttmoe.factorisation import factorisations, nearest_factorisation
from ttmoe.shapes import TTShape, auto_shape, candidate_shapes, lora_parameters

QUERY = "16x8x4x4|4x4x8x16@5"
VALUE = "16x16x4x2|2x16x16@5"


def test_the_papers_counts_on_llama_3_2_1b():
    query, value = TTShape.parse(QUERY), TTShape.parse(VALUE)
    assert (query.in_features, query.out_features, query.parameters) == (2048, 2048, 960)
    assert (value.in_features, value.out_features, value.parameters) == (2048, 512, 1160)
    assert 16 * (query.parameters + value.parameters) == 33_920
    assert 16 * (lora_parameters(2048, 2048, 16) + lora_parameters(2048, 512, 16)) == 1_703_936


def test_core_shapes_of_the_papers_value_projection():
    assert TTShape.parse(VALUE).core_shapes == (
        (1, 16, 5), (5, 16, 5), (5, 4, 5), (5, 2, 5), (5, 2, 5), (5, 16, 5), (5, 16, 1),
    )  # fmt: skip
    assert TTShape.parse(VALUE).split == 4


@pytest.mark.parametrize("text", [QUERY, VALUE, "7|11@3", "24x24|24x24@128"])
def test_text_round_trip(text):
    assert str(TTShape.parse(text)) == text
    assert TTShape.parse(str(TTShape.parse(text))) == TTShape.parse(text)


@pytest.mark.parametrize("text", ["", "4x4@5", "4x4|4x4", "4x|4@2", "4x4|4x4@", "4x4|4x4@-1", " 4|4@1", "4*4|4@1"])
def test_text_that_is_no_shape(text):
    with pytest.raises(InputError, match="16x8x4x4"):
        TTShape.parse(text)


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank"), [((), (4,), 1), ((4,), (), 1), ((4, 0), (4,), 1), ((4,), (4,), 0)]
)
def test_values_that_are_no_shape(inputs, outputs, rank):
    with pytest.raises(InputError):
        TTShape(inputs, outputs, rank)


def test_mirrored_shapes_stay_apart():
    shape, mirrored = TTShape.parse("16x4|4x16@5"), TTShape.parse("4x16|16x4@5")
    assert shape != mirrored
    assert len({shape, mirrored, TTShape.parse("16x4|4x16@5")}) == 2


def test_bonds_are_capped_where_a_larger_one_adds_nothing():
    shape = TTShape((2, 3, 4), (5, 2), 50)
    assert shape.ranks == (1, 2, 6, 10, 2, 1)
    assert shape.inner_rank == 10
    assert shape.parameters == 2 * 2 + 2 * 3 * 6 + 6 * 4 * 10 + 10 * 5 * 2 + 2 * 2
    assert TTShape((2, 3, 4), (5, 2), 5).ranks == (1, 2, 5, 5, 2, 1)


def test_factors_that_do_not_fit_name_product_width_and_nearest():
    with pytest.raises(InputError) as caught:
        TTShape.parse("16x8x4x3|4x4x8x16@5").require_widths(2048, 2048, where="run.yaml: adapter.shape")
    text = str(caught.value)
    assert text.startswith("run.yaml: adapter.shape: the input factors 16x8x4x3 multiply to 1536")
    assert "2048" in text
    assert "16x8x4x4" in text
    with pytest.raises(InputError, match="output factors 4x4x8x16 multiply to 2048"):
        TTShape.parse(QUERY).require_widths(2048, 512)
    TTShape.parse(QUERY).require_widths(2048, 2048)


@pytest.mark.parametrize(("factors", "width"), [((16, 8, 4, 3), 2048), ((10, 50), 576), ((7, 7, 7), 360)])
def test_nearest_factorisation_is_the_nearest_of_all(factors, width):
    def distance(other):
        return sum(abs(math.log(a / b)) for a, b in zip(factors, other, strict=True))

    found = nearest_factorisation(factors, width)
    everything = factorisations(width, min_factors=len(factors), max_factors=len(factors))
    assert math.prod(found) == width
    assert distance(found) == pytest.approx(min(map(distance, everything)))


def test_nearest_of_a_prime_has_one_factor():
    assert nearest_factorisation((32, 32), 1009) == (1009,)


@cache
def count(width: int, factors: int, smallest: int, largest: int) -> int:
    if factors == 0:
        return width == 1
    return sum(
        count(width // f, factors - 1, smallest, largest) for f in range(smallest, largest + 1) if width % f == 0
    )


@pytest.mark.parametrize("width", [1, 2, 7, 64, 360, 576, 768, 2048])
@pytest.mark.parametrize(("fewest", "most", "smallest", "largest"), [(1, 4, 2, None), (2, 6, 2, 32), (3, 5, 4, 16)])
def test_factorisations_are_complete_and_distinct(width, fewest, most, smallest, largest):
    found = factorisations(width, min_factors=fewest, max_factors=most, min_factor=smallest, max_factor=largest)
    assert len(found) == sum(count(width, k, smallest, largest or width) for k in range(fewest, most + 1))
    assert len(set(found)) == len(found)
    assert all(math.prod(f) == width and fewest <= len(f) <= most for f in found)
    assert all(smallest <= min(f) and max(f) <= (largest or width) for f in found)
    assert found == sorted(found, key=lambda f: (len(f), f))


@pytest.mark.parametrize(("width", "smallest"), [(0, 2), (-4, 2), (4, 1)])
def test_widths_that_cannot_be_factorised(width, smallest):
    with pytest.raises(InputError):
        factorisations(width, max_factors=2, min_factor=smallest)


def test_candidates_ordered_and_not():
    everything = candidate_shapes(64, 36, 4, ordered=True)
    expected = sum(
        count(64, p, 2, 64) * count(36, q, 2, 36) for p in range(1, 6) for q in range(1, 6) if 4 <= p + q <= 6
    )
    assert len(set(everything)) == len(everything) == expected
    classes = {(tuple(sorted(s.inputs)), tuple(sorted(s.outputs))) for s in everything}
    unique = candidate_shapes(64, 36, 4)
    assert {(s.inputs[::-1], s.outputs) for s in unique} == classes
    assert len(unique) == len(classes)
    assert set(unique) <= set(everything)
    for shapes in (everything, unique):
        assert [s.parameters for s in shapes] == sorted(s.parameters for s in shapes)


def test_the_unordered_candidate_is_the_cheapest_of_its_orders():
    cheapest: dict = {}  # at a rank that caps no bond
    for shape in candidate_shapes(64, 36, 2, ordered=True):
        key = tuple(sorted(shape.inputs)), tuple(sorted(shape.outputs))
        cheapest[key] = min(cheapest.get(key, shape.parameters), shape.parameters)
    for shape in candidate_shapes(64, 36, 2):
        assert shape.parameters == cheapest[tuple(sorted(shape.inputs)), tuple(sorted(shape.outputs))]


WIDTHS = [
    64,
    128,
    192,
    256,
    320,
    384,
    512,
    576,
    768,
    896,
    960,
    1024,
    1536,
    2048,
    2560,
    3072,
    4096,
    5120,
    8192,
]


@pytest.mark.parametrize("inputs", WIDTHS)
def test_auto_shape_of_real_widths(inputs):
    for outputs in WIDTHS:
        shape = auto_shape(inputs, outputs, 8)
        shape.require_widths(inputs, outputs)
        assert 4 <= len(shape.core_shapes) <= 6
        assert max(shape.inputs + shape.outputs) <= 32
        assert max(shape.inputs) <= 2 * min(shape.inputs)
        assert shape.inner_rank == 8
        assert shape.parameters < lora_parameters(inputs, outputs, 8) or inputs == outputs == 64  # too narrow to gain


@pytest.mark.parametrize(
    ("width", "factors"),
    [
        (1, (1,)),
        (2, (2,)),
        (7, (7,)),
        (1009, (1009,)),
        (2018, (2, 1009)),
        (4036, (4, 1009)),
        (11008, (16, 16, 43)),
    ],
)
def test_auto_shape_of_awkward_widths(width, factors):
    shape = auto_shape(width, width, 8)
    assert (shape.inputs, shape.outputs) == (factors[::-1], factors)


@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(0, 4, 1), (4, -1, 1), (4, 4, 0)])
def test_auto_shape_of_nothing(inputs, outputs, rank):
    with pytest.raises(InputError):
        auto_shape(inputs, outputs, rank)


def test_shapes_need_no_torch():
    code = "import sys, ttmoe.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
