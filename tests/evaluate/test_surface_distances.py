"""Surface distances: closed forms at five spacings, the definition point by point, MONAI, and the surface-distance package."""

from __future__ import annotations

import math
import time
import tracemalloc
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from medquant.errors import GeometryError, InputError
from medquant.evaluate.surface_distances import Surface, SurfaceDistances, point_distances, surface_distances
from medquant.evaluate.surface_elements import element_areas, surface_elements

Spacing = tuple[float, float, float]
BoolArray = NDArray[np.bool_]

# isotropic, a CT, the gray matter challenge, all axes apart, and a spacing that is no short binary number
SPACINGS: tuple[Spacing, ...] = ((1.0, 1.0, 1.0), (0.703125, 0.703125, 2.5), (0.5, 0.5, 5.0), (0.3, 1.1, 4.0), (0.1, 0.7, 0.3))
SURFACES: tuple[Surface, ...] = ("voxels", "elements")


def box(shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]) -> BoolArray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))] = True
    return mask


def blobs(seed: int, shape: tuple[int, int, int] = (14, 11, 9)) -> tuple[BoolArray, BoolArray]:
    """Two ragged masks that overlap in part, one touching the edges of the volume."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    other = ndimage.gaussian_filter(np.random.default_rng(seed + 1000).normal(size=shape), 1.5)
    return noise > 0.03, noise + 0.7 * other > 0.06


# ------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("surface", SURFACES)
def test_two_parallel_planes(spacing: Spacing, axis: int, surface: Surface) -> None:
    # sheets one voxel thick across the whole volume, three voxels apart: every voxel is border, every distance 3 spacings.
    # Elements: the two faces of one sheet lie on both sides of it, those of the other 3 further: distances 2 and 3, or 3 and 2.
    size = [6, 6, 6]
    size[axis] = 1
    first, second = [0, 0, 0], [0, 0, 0]
    first[axis], second[axis] = 1, 4
    masks = [box((6, 6, 6), tuple(at), tuple(size)) for at in (first, second)]  # type: ignore[arg-type]
    found = surface_distances(*masks, spacing, surface=surface)
    assert found.hausdorff == pytest.approx(3 * spacing[axis], rel=1e-12)
    if surface == "voxels":
        for figure in (found.hd95, found.assd, found.masd, found.median):
            assert figure == pytest.approx(3 * spacing[axis], rel=1e-12)
        assert found.nsd(3 * spacing[axis]) == 1.0
        assert found.nsd(2.999 * spacing[axis]) == 0.0
    else:
        assert found.assd == pytest.approx(2.5 * spacing[axis], rel=1e-12)
        assert found.nsd(2 * spacing[axis]) == pytest.approx(0.5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("surface", SURFACES)
def test_boxes_shifted_along_each_axis(spacing: Spacing, surface: Surface) -> None:
    # the far face of the shifted box is n spacings beyond the last plane of the other one, and nothing is further
    for axis, steps in product(range(3), (1, 2)):
        start = [3, 3, 3]
        start[axis] += steps
        prediction, truth = box((14, 14, 14), tuple(start), (7, 7, 7)), box((14, 14, 14), (3, 3, 3), (7, 7, 7))  # type: ignore[arg-type]
        found = surface_distances(prediction, truth, spacing, surface=surface)
        assert found.hausdorff == pytest.approx(steps * spacing[axis], rel=1e-12)
        assert 0.0 < found.assd < steps * spacing[axis]
        assert found.nsd(steps * spacing[axis]) == 1.0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_concentric_boxes(spacing: Spacing) -> None:
    # two voxels from face to face on every side: corners are the furthest points, 2 · |spacing| apart;
    # a border voxel of the inner box is nearest to a face of the outer one, seen along the axis where that is cheapest
    outer, inner = box((15, 15, 15), (1, 1, 1), (13, 13, 13)), box((15, 15, 15), (3, 3, 3), (9, 9, 9))
    found = surface_distances(inner, outer, spacing)
    assert found.hausdorff == pytest.approx(2 * math.hypot(*spacing), rel=1e-12)
    expected = [
        min(min(index - 1, 13 - index) * length for index, length in zip(voxel, spacing, strict=True))
        for voxel in product(range(3, 12), repeat=3)
        if any(index in (3, 11) for index in voxel)
    ]
    assert found.to_truth_mm.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_concentric_balls(spacing: Spacing) -> None:
    # balls in millimetres, 12 and 9 voxels of the finest axis: all distances are 3 of those, to within a voxel's diagonal
    unit = min(spacing)
    half = [math.ceil(13 * unit / length) for length in spacing]
    grid = np.meshgrid(*[np.arange(-n, n + 1) * length for n, length in zip(half, spacing, strict=True)], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in grid))
    for surface in SURFACES:
        found = surface_distances(radius <= 9 * unit, radius <= 12 * unit, spacing, surface=surface)
        for figure in (found.hausdorff, found.hd95, found.assd, found.masd):
            assert abs(figure - 3 * unit) < math.hypot(*spacing)
        if spacing == (1.0, 1.0, 1.0) and surface == "voxels":
            assert found.assd == pytest.approx(3.0, abs=0.35)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_area_of_a_box(spacing: Spacing) -> None:
    # marching cubes through the middle between voxels: six faces, twelve bevelled edges, eight cut corners
    a, b, c = spacing
    p, q, r = 4, 3, 5
    areas = surface_elements(box((9, 9, 9), (2, 0, 1), (p + 1, q + 1, r + 1)), spacing).areas
    faces = 2 * (p * a * q * b + q * b * r * c + p * a * r * c)
    edges = 4 * (p * a * math.hypot(b, c) + q * b * math.hypot(a, c) + r * c * math.hypot(a, b)) / 2
    corners = 8 * math.sqrt((a * b) ** 2 + (b * c) ** 2 + (a * c) ** 2) / 8
    assert float(areas.sum()) == pytest.approx(faces + edges + corners, rel=1e-6)


def test_outline_of_a_rectangle() -> None:
    elements = surface_elements(np.ones((4, 6), dtype=bool), (0.5, 2.0))
    assert float(elements.areas.sum()) == pytest.approx(2 * 3 * 0.5 + 2 * 5 * 2.0 + 4 * math.hypot(0.5, 2.0) / 2)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_mask_and_its_background_share_their_boundary(spacing: Spacing) -> None:
    table = element_areas(spacing)
    assert table == pytest.approx(table[::-1])
    assert table[0] == table[255] == 0.0


def test_percentiles_and_means_of_given_distances() -> None:
    # by hand: 1..20 and four zeros; areas that put 96 % of the surface at distance 1
    found = SurfaceDistances(np.arange(1.0, 21.0), np.zeros(4))
    assert (found.hausdorff, found.median) == (20.0, 10.5)
    assert found.hd95 == pytest.approx(19.05)
    assert found.assd == pytest.approx(210 / 24)
    assert found.masd == pytest.approx((10.5 + 0.0) / 2)
    assert found.nsd(5.0) == pytest.approx((5 + 4) / 24)
    weighted = SurfaceDistances(np.array([7.0, 1.0]), np.zeros(1), np.array([4.0, 96.0]), np.array([100.0]))
    assert (weighted.hausdorff, weighted.hd95, weighted.hausdorff_percentile(97.0)) == (7.0, 1.0, 7.0)
    assert weighted.assd == pytest.approx((28 + 96) / 200)
    assert weighted.masd == pytest.approx((28 + 96) / 100 / 2)
    assert weighted.nsd(1.0) == pytest.approx(196 / 200)
    # the furthest point counts however small its area
    assert SurfaceDistances(np.array([7.0, 1.0]), np.zeros(1), np.array([0.0, 96.0]), np.array([100.0])).hausdorff == 7.0


# --------------------------------------------------------------------------------------------------- the definition


def border_by_definition(mask: BoolArray) -> NDArray[np.int64]:
    """Voxels of the mask with a face neighbour that is background or outside, one by one; a single axis of length 1 does not count."""
    axes = [axis for axis in range(3) if not (mask.shape[axis] == 1 and mask.shape.count(1) == 1)]
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in product(axes, (-1, 1)):
            near = voxel.copy()
            near[axis] += step
            if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                found.append(voxel)
                break
    return np.asarray(found)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(14, 11, 9), (14, 11, 1), (1, 12, 9), (12, 1, 9)])
def test_equals_the_definition_point_by_point(spacing: Spacing, shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        prediction, truth = blobs(seed, shape)
        found = surface_distances(prediction, truth, spacing)
        a, b = border_by_definition(prediction) * np.array(spacing), border_by_definition(truth) * np.array(spacing)
        table = cdist(a, b)
        one, two = table.min(axis=1), table.min(axis=0)
        assert found.to_truth_mm == pytest.approx(one)
        assert found.to_prediction_mm == pytest.approx(two)
        assert found.hausdorff == pytest.approx(max(one.max(), two.max()))
        assert found.assd == pytest.approx(np.concatenate([one, two]).mean())
        assert found.masd == pytest.approx((one.mean() + two.mean()) / 2)
        assert found.hd95 == pytest.approx(max(np.percentile(one, 95), np.percentile(two, 95)))
        assert found.nsd(0.85) == pytest.approx(np.mean(np.concatenate([one, two]) <= 0.85))


def test_the_place_in_the_volume_and_empty_margins_do_not_matter() -> None:
    prediction, truth = blobs(5)
    for surface in SURFACES:
        tight = surface_distances(prediction, truth, SPACINGS[1], surface=surface)
        wide = surface_distances(*[np.pad(mask, ((3, 9), (0, 4), (7, 1))) for mask in (prediction, truth)], SPACINGS[1], surface=surface)
        assert wide.to_truth_mm.tolist() == tight.to_truth_mm.tolist()
        assert (wide.hausdorff, wide.assd, wide.nsd(1.0)) == (tight.hausdorff, tight.assd, tight.nsd(1.0))


def test_exchanging_the_masks_changes_no_figure() -> None:
    prediction, truth = blobs(6)
    for surface in SURFACES:
        there, back = (surface_distances(*pair, SPACINGS[3], surface=surface) for pair in ((prediction, truth), (truth, prediction)))
        for name in ("hausdorff", "hd95", "assd", "masd", "median"):
            assert getattr(there, name) == pytest.approx(getattr(back, name))


def test_the_spacing_matters() -> None:
    # one voxel along the slices costs a slice distance
    truth, prediction = box((9, 9, 9), (2, 2, 2), (4, 4, 4)), box((9, 9, 9), (2, 2, 3), (4, 4, 4))
    assert [surface_distances(prediction, truth, (1.0, 1.0, k)).hausdorff for k in (1.0, 2.5, 0.5)] == [1.0, 2.5, 0.5]


def test_rounding_in_a_header_does_not_push_a_surface_out_of_tolerance() -> None:
    truth, prediction = box((9, 9, 9), (2, 2, 2), (3, 3, 3)), box((9, 9, 9), (5, 2, 2), (3, 3, 3))
    spacing = (float(np.float32(0.1)), 1.0, 1.0)
    found = surface_distances(prediction, truth, spacing)
    assert found.hausdorff > 0.3
    assert found.nsd(0.3) == 1.0


def test_identical_masks_have_no_distance() -> None:
    mask, _ = blobs(7)
    for surface in SURFACES:
        found = surface_distances(mask, mask, SPACINGS[2], surface=surface)
        assert (found.hausdorff, found.hd95, found.assd, found.masd, found.nsd(0.0)) == (0.0, 0.0, 0.0, 0.0, 1.0)


# ------------------------------------------------------------------------------------------------------ empty masks


@pytest.mark.parametrize("surface", SURFACES)
def test_empty_masks_follow_the_stated_rule(surface: Surface) -> None:
    empty, one = np.zeros((5, 5, 5), dtype=bool), box((5, 5, 5), (1, 1, 1), (2, 2, 2))
    neither = surface_distances(empty, empty, SPACINGS[0], surface=surface)
    assert neither.both_empty
    assert not neither.one_sided
    assert math.isnan(neither.nsd(1.0))
    for pair in ((empty, one), (one, empty)):
        found = surface_distances(*pair, SPACINGS[0], surface=surface)
        assert found.one_sided
        assert not found.both_empty
        assert found.nsd(1e6) == 0.0
        assert all(math.isnan(figure) for figure in (found.hausdorff, found.hd95, found.assd, found.masd, found.median))
    both = surface_distances(one, one, SPACINGS[0], surface=surface)
    assert not both.one_sided
    assert not both.both_empty
    assert all(math.isnan(figure) for figure in (neither.hausdorff, neither.hd95, neither.assd, neither.masd, neither.median))


def test_point_sets_of_any_number_of_axes() -> None:
    points = np.zeros((3, 8), dtype=bool)
    targets = points.copy()
    points[0, 1] = targets[2, 5] = targets[0, 7] = True
    found = point_distances(points, targets, (3.0, 0.5))
    assert found.to_truth_mm.tolist() == [3.0]
    assert found.to_prediction_mm.tolist() == [3.0, math.hypot(6.0, 2.0)]


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing", "error", "message"),
    [
        (np.zeros((2, 3, 4), bool), np.zeros((2, 4, 3), bool), (1.0, 1.0, 1.0), InputError, r"\(2, 3, 4\).*\(2, 4, 3\)"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), bool), (1.0, 1.0), InputError, "i, j, slice"),
        (np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), bool), (1.0, 1.0, 1.0), InputError, "uint8"),
        (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool), (1.0, 1.0), GeometryError, r"three positive lengths.*\(1.0, 1.0\)"),
        (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool), (1.0, 0.0, 1.0), GeometryError, "0.0"),
        (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool), (1.0, math.nan, 1.0), GeometryError, "nan"),
    ],
)
def test_masks_that_cannot_be_measured_are_refused(
    prediction: BoolArray, truth: BoolArray, spacing: Spacing, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        surface_distances(prediction, truth, spacing)


def test_unfit_percentiles_and_tolerances_are_refused() -> None:
    found = surface_distances(*blobs(8), SPACINGS[0])
    for percent in (-1.0, 101.0, math.nan):
        with pytest.raises(InputError, match=r"0\.\.100"):
            found.hausdorff_percentile(percent)
    for tolerance in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="tolerance"):
            found.nsd(tolerance)


# --------------------------------------------------------------------------------------------------- other libraries


@pytest.mark.parametrize("spacing", SPACINGS)
def test_agrees_with_monai(spacing: Spacing) -> None:
    torch = pytest.importorskip("torch")
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    for seed in range(4):
        prediction, truth = blobs(seed)
        voxels, elements = (surface_distances(prediction, truth, spacing, surface=surface) for surface in SURFACES)
        one_hot = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, truth)]
        options = {"include_background": True, "spacing": spacing}
        assert voxels.hausdorff == pytest.approx(compute_hausdorff_distance(*one_hot, **options).item(), rel=1e-5)
        assert voxels.hd95 == pytest.approx(compute_hausdorff_distance(*one_hot, percentile=95, **options).item(), rel=1e-5)
        assert voxels.assd == pytest.approx(compute_average_surface_distance(*one_hot, symmetric=True, **options).item(), rel=1e-5)
        for tolerance in (0.0, 0.75, 1.6):
            expected = compute_surface_dice(*one_hot, [tolerance], **options).item()
            assert voxels.nsd(tolerance) == pytest.approx(expected, rel=1e-5)
            expected = compute_surface_dice(*one_hot, [tolerance], use_subvoxels=True, **options).item()
            assert elements.nsd(tolerance) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The surface-distance package asks for names that NumPy and SciPy have since moved."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    monkeypatch.setattr(ndimage, "filters", ndimage, raising=False)
    monkeypatch.setattr(ndimage, "morphology", ndimage, raising=False)


@pytest.mark.usefixtures("old_names")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(14, 11, 9), (14, 11, 1)])
def test_elements_agree_with_the_surface_distance_package(spacing: Spacing, shape: tuple[int, int, int]) -> None:
    package = pytest.importorskip("surface_distance")
    for seed in range(4):
        prediction, truth = blobs(seed, shape)
        found = surface_distances(prediction, truth, spacing, surface="elements")
        axes = 2 if shape[2] == 1 else 3
        masks = (truth.squeeze(), prediction.squeeze())
        expected = package.compute_surface_distances(*masks, spacing[:axes])
        assert np.sort(found.to_truth_mm) == pytest.approx(expected["distances_pred_to_gt"])
        assert np.sort(found.to_prediction_mm) == pytest.approx(expected["distances_gt_to_pred"])
        assert found.prediction_areas is not None
        assert float(found.prediction_areas.sum()) == pytest.approx(float(expected["surfel_areas_pred"].sum()), rel=1e-6)
        assert found.hausdorff == pytest.approx(package.compute_robust_hausdorff(expected, 100))
        assert found.hd95 == pytest.approx(package.compute_robust_hausdorff(expected, 95))
        assert found.masd == pytest.approx(np.mean(package.compute_average_surface_distance(expected)), rel=1e-6)
        for tolerance in (0.0, 0.75, 1.6):
            assert found.nsd(tolerance) == pytest.approx(package.compute_surface_dice_at_tolerance(expected, tolerance), rel=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_element_areas_are_those_of_the_surface_distance_package(spacing: Spacing) -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables")
    for axes, name, kernel in (
        (2, "create_table_neighbour_code_to_contour_length", tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL),
        (3, "create_table_neighbour_code_to_surface_area", tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL),
    ):
        theirs, ours = getattr(tables, name)(spacing[:axes]), element_areas(spacing[:axes])
        bits = (np.arange(len(ours))[:, None] >> np.arange(2**axes)) & 1
        assert ours == pytest.approx(theirs[bits @ kernel.reshape(-1)], rel=1e-5)


# ------------------------------------------------------------------------------------------------------ large volumes


def test_a_small_organ_in_a_large_volume_is_quick_and_light() -> None:
    truth = np.zeros((512, 512, 240), dtype=bool)
    prediction = truth.copy()
    truth[200:280, 220:300, 90:150] = prediction[203:280, 220:300, 90:152] = True
    tracemalloc.start()
    started = time.process_time()
    found = surface_distances(prediction, truth, (0.8, 0.8, 1.0))
    elapsed, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.hausdorff == pytest.approx(2.4)
    assert elapsed < 10.0
    assert peak < 100e6


@pytest.mark.slow
@pytest.mark.parametrize("surface", SURFACES)
def test_stray_voxels_in_all_corners_stay_below_the_stated_memory(surface: Surface) -> None:
    truth = np.zeros((512, 512, 240), dtype=bool)
    prediction = truth.copy()
    truth[200:280, 220:300, 90:150] = prediction[203:280, 220:300, 90:152] = True
    prediction[0, 0, 0] = prediction[-1, -1, -1] = truth[0, -1, 0] = True
    tracemalloc.start()
    found = surface_distances(prediction, truth, (0.8, 0.8, 1.0), surface=surface)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.hausdorff > 200.0
    assert peak + truth.nbytes + prediction.nbytes < 1.5e9


@pytest.mark.slow
def test_a_thousand_pairs_agree_with_monai() -> None:
    torch = pytest.importorskip("torch")
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    for seed in range(200):
        prediction, truth = blobs(seed, (10, 9, 8))
        if not prediction.any() or not truth.any():
            continue
        one_hot = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, truth)]
        for spacing in SPACINGS:
            found = surface_distances(prediction, truth, spacing)
            options = {"include_background": True, "spacing": spacing}
            assert found.hausdorff == pytest.approx(compute_hausdorff_distance(*one_hot, **options).item(), rel=1e-5)
            assert found.hd95 == pytest.approx(compute_hausdorff_distance(*one_hot, percentile=95, **options).item(), rel=1e-5)
            expected = compute_average_surface_distance(*one_hot, symmetric=True, **options).item()
            assert found.assd == pytest.approx(expected, rel=1e-5, abs=1e-7)
