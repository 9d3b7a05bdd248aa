import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medquant.deploy.bitpacking import pack, packed_size_bytes, unpack
from medquant.errors import CheckpointError, ConfigError
from medquant.quant.formats import weight_range

CHUNK = 1 << 16  # the module works in pieces of this many values


def integers(bits: int) -> st.SearchStrategy[int]:
    low, high = weight_range(bits)
    return st.sampled_from([-1, 1]) if bits == 1 else st.integers(low, high)


@given(st.data(), st.integers(1, 8))
def test_round_trip_of_any_count(data: st.DataObject, bits: int) -> None:
    values = np.array(data.draw(st.lists(integers(bits), max_size=70)), dtype=np.int64)
    packed = pack(values, bits)
    assert len(packed) == -(-values.size * bits // 8)  # closed form: ceil(count * bits / 8)
    back = unpack(packed, bits, values.size)
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, values)


@given(st.data(), st.integers(2, 8))
def test_bit_order_against_python_integers(data: st.DataObject, bits: int) -> None:
    """Another way to the same bytes: one big integer in which value i is shifted left by i * bits."""
    values = data.draw(st.lists(integers(bits), min_size=1, max_size=40))
    number = sum((value % 2**bits) << (i * bits) for i, value in enumerate(values))
    assert pack(np.array(values), bits) == number.to_bytes(-(-len(values) * bits // 8), "little")


def test_by_hand() -> None:
    # 4 bits: 1 -> 0001 (low half of the first byte), -1 -> 1111 (high half), -8 -> 1000.
    assert pack(np.array([1, -1, -8]), 4) == bytes([0b1111_0001, 0b0000_1000])
    # 1 bit: 1 -> 1, -1 -> 0, the first value in the lowest bit.
    assert pack(np.array([1, -1, -1, 1]), 1) == bytes([0b1001])
    # 3 bits: 3 -> 011, -4 -> 100, -1 -> 111; the third begins at bit 6.
    assert pack(np.array([3, -4, -1]), 3) == bytes([0b11_100_011, 0b1])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 3])
def test_round_trip_across_pieces(bits: int, count: int) -> None:
    low, high = weight_range(bits)
    values = np.random.default_rng(bits).integers(low, high + 1, count)
    values[values == 0] = 1 if bits == 1 else 0
    packed = pack(values, bits)
    assert len(packed) == packed_size_bytes(count, bits) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, count), values)


def test_any_shape_is_read_in_c_order() -> None:
    values = np.arange(-6, 6).reshape(3, 4)
    assert pack(values.T, 4) == pack(np.ascontiguousarray(values.T).reshape(-1), 4)


@pytest.mark.parametrize(("bits", "value"), [(1, 0), (1, 2), (2, 2), (2, -3), (4, 8), (4, -9), (8, 128), (8, -129), (8, 2**40)])
def test_integers_out_of_range_are_refused(bits: int, value: int) -> None:
    with pytest.raises(CheckpointError, match=f"integer {value} does not fit {bits} bits"):
        pack(np.array([1, value, 1]), bits)


@pytest.mark.parametrize("bits", [0, 9, -1, 32])
def test_widths_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="1 to 8 bits"):
        pack(np.array([1]), bits)
    with pytest.raises(ConfigError, match="1 to 8 bits"):
        unpack(b"\0", bits, 1)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_wrong_lengths_are_refused(size: int) -> None:
    with pytest.raises(CheckpointError, match=f"take 2 bytes, found {size}"):
        unpack(bytes(size), 4, 3)


def test_bits_behind_the_last_value_must_be_zero() -> None:
    with pytest.raises(CheckpointError, match="last 4 bits"):
        unpack(bytes([0, 0b0001_0000]), 4, 3)
