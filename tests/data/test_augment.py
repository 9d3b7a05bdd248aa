"""Augmentation. Expected: identities (an image made from its label must stay so), and arrays moved by NumPy."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medquant.data.augment import KINDS, Augmenter
from medquant.errors import ConfigError


def _pair(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A label of smooth asymmetric blobs, and an image of their soft edge: above 0.5 exactly where the label is 1."""
    noise = gaussian_filter(np.random.default_rng(2).standard_normal(size), 7.0)
    soft = 1 / (1 + np.exp(-60 * noise / noise.std() * 0.05))
    return soft[None].astype(np.float32), (soft > 0.5)[None].astype(np.uint8)


def _window(augmenter: Augmenter) -> tuple[int, int]:
    return tuple(side + 2 * margin for side, margin in zip(augmenter.patch_size, augmenter.margin, strict=True))  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["em", "mr", "mr_sites"])
def augmenter(request: pytest.FixtureRequest) -> Augmenter:
    return Augmenter(request.param, (96, 96))


def test_image_and_label_stay_aligned(augmenter: Augmenter) -> None:
    # Intensity steps are monotonic but for noise and blur, so a threshold learnt from the patch itself has to give its label.
    # Were only one of the two mirrored or turned, the agreement would be that of unrelated masks, about 0.5.
    image, label = _pair(_window(augmenter))
    scores, moved = [], 0
    for seed in range(60):
        out_image, out_label = augmenter(image, label, seed)
        threshold = np.quantile(out_image, 1 - out_label.mean())
        scores.append(float(np.mean((out_image > threshold) == (out_label == 1))))
        middle = label[:, augmenter.margin[0] :, augmenter.margin[1] :][:, :96, :96]
        moved += bool(np.mean(out_label == middle) < 0.9)
    assert min(scores) > 0.85
    assert float(np.mean(scores)) > 0.95
    assert moved > 40


def test_a_mirrored_label_would_be_noticed(augmenter: Augmenter) -> None:
    # The check above can fail: the same comparison with the label mirrored.
    image, label = _pair(_window(augmenter))
    out_image, out_label = augmenter(image, label, 0)
    mirrored = out_label[:, ::-1]
    threshold = np.quantile(out_image, 1 - out_label.mean())
    assert np.mean((out_image > threshold) == (mirrored == 1)) < 0.8


def test_output_depends_on_the_seed_only(augmenter: Augmenter) -> None:
    image, label = _pair(_window(augmenter))
    expected = {seed: augmenter(image, label, seed) for seed in range(8)}
    fresh = Augmenter(augmenter.kind, (96, 96))
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    for seed in (5, 2, 7, 2, 0):
        for result, wanted in zip(fresh(image, label, seed), expected[seed], strict=True):
            np.testing.assert_array_equal(result, wanted)
    assert len({expected[seed][0].tobytes() for seed in expected}) == 8


def test_global_random_state_is_left_alone(augmenter: Augmenter) -> None:
    image, label = _pair(_window(augmenter))
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # type: ignore[union-attr]  # noqa: NPY002
    for seed in range(10):
        augmenter(image, label, seed)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[arg-type]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.fixture
def thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_number_of_threads_does_not_change_a_bit(thread_count: None) -> None:
    augmenter = Augmenter("em", (256, 256))
    image, label = _pair(_window(augmenter))
    for seed in range(12):
        torch.set_num_threads(1)
        one = augmenter(image, label, seed)
        torch.set_num_threads(2)
        two = augmenter(image, label, seed)
        assert all(np.array_equal(first, second) for first, second in zip(one, two, strict=True))


def test_inputs_are_left_and_outputs_are_fresh() -> None:
    for kind in KINDS:
        augmenter = Augmenter(kind, (32, 48))  # type: ignore[arg-type]
        image, label = _pair(_window(augmenter))
        copies = image.copy(), label.copy()
        for seed in range(5):
            out_image, out_label = augmenter(image, label, seed)
            assert out_image.shape == out_label.shape == (1, 32, 48)
            assert (out_image.dtype, out_label.dtype) == (np.float32, np.uint8)
            assert np.isfinite(out_image).all()
            out_image += 1
            out_label += 1
        np.testing.assert_array_equal(image, copies[0])
        np.testing.assert_array_equal(label, copies[1])


def test_labels_keep_their_classes(augmenter: Augmenter) -> None:
    label = np.random.default_rng(0).choice(np.array([0, 3, 7], np.uint8), size=(1, *_window(augmenter)))
    for seed in range(10):
        assert set(np.unique(augmenter(label.astype(np.float32), label, seed)[1])) <= {0, 3, 7}


def test_none_cuts_the_middle() -> None:
    image = np.arange(6 * 8, dtype=np.float32).reshape(1, 6, 8)
    out_image, out_label = Augmenter("none", (4, 4))(image, image.astype(np.uint8), 3)
    np.testing.assert_array_equal(out_image[0], image[0, 1:5, 2:6])
    np.testing.assert_array_equal(out_label[0], image[0, 1:5, 2:6])


@pytest.mark.parametrize("size", [(96, 96), (97, 64), (33, 100)])
def test_zero_deformation_is_the_identity(size: tuple[int, int]) -> None:
    # The reason for an elastic transform of our own: MONAI's moves pixels even then.
    from medquant.data.elastic import ElasticAffined

    image = torch.from_numpy(np.random.default_rng(0).random((1, size[0] + 20, size[1] + 20), dtype=np.float32))
    still = ElasticAffined(("image",), size, spacing=16, magnitude=(0.0, 0.0), rotation=0.0, scale=0.0, prob=1.0)
    still.set_random_state(seed=0)
    result = np.asarray(still({"image": image})["image"])
    np.testing.assert_allclose(result, image[:, 10:-10, 10:-10].numpy(), atol=2e-5)


def test_rotation_alone_turns_about_the_middle() -> None:
    # A rotation keeps distances from the middle: an image of such distances must not change.
    from medquant.data.elastic import ElasticAffined

    line = torch.arange(140, dtype=torch.float32) - 69.5
    image = torch.hypot(line[:, None], line[None, :])[None]
    turn = ElasticAffined(("image",), (80, 80), spacing=16, magnitude=(0.0, 0.0), rotation=np.pi, scale=0.0, prob=1.0)
    for seed in range(5):
        turn.set_random_state(seed=seed)
        result = np.asarray(turn({"image": image})["image"])
        wanted = image[:, 30:110, 30:110].numpy()
        # The cone's tip is a kink, which interpolation rounds off.
        np.testing.assert_allclose(result[wanted > 3], wanted[wanted > 3], atol=0.05)


@pytest.mark.parametrize("kind", ["em", "mr"])
@pytest.mark.parametrize("size", [(96, 96), (64, 160)])
def test_margin_keeps_reflections_out(kind: str, size: tuple[int, int]) -> None:
    # A window framed in 100 would show it in the patch if the grid reached beyond the margin; the middle is 0 to 1.
    augmenter = Augmenter(kind, size)  # type: ignore[arg-type]
    height, width = _window(augmenter)
    image = np.full((1, height + 40, width + 40), 100.0, np.float32)
    image[:, 20:-20, 20:-20] = 0.0
    label = (image > 50).astype(np.uint8)
    shares = [float(augmenter(image, label, seed)[1].mean()) for seed in range(60)]
    assert max(shares) < 0.002


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown augmentation 'xray'"):
        Augmenter("xray", (32, 32))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="patch_size"):
        Augmenter("none", (0, 32))


def test_ct_is_never_mirrored_and_channels_move_alike() -> None:
    # A ramp along each axis, as two channels: after small rotations both still rise in the same direction.
    augmenter = Augmenter("ct", (48, 48))
    rows, columns = _window(augmenter)
    down, across = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    image = np.stack([down, across]).astype(np.float32)
    label = np.stack([down > 0.5, across > 0.5, down > 0.5]).astype(np.uint8)
    for seed in range(20):
        moved, labels = augmenter(image, label, seed)
        assert moved[0, -8:].mean() > moved[0, :8].mean() + 0.2
        assert moved[1, :, -8:].mean() > moved[1, :, :8].mean() + 0.2
        # The third label is a copy of the first and got the same field, as every channel does.
        np.testing.assert_array_equal(labels[0], labels[2])
        assert moved.shape == (2, 48, 48)
        assert labels.shape == (3, 48, 48)
