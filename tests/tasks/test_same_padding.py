"""TensorFlow's padding in whole numbers is timm's."""

from __future__ import annotations

import itertools

import timm.layers.padding

from tasks.same_padding import same_padding, whole_numbers


def test_it_is_timms():
    original = timm.layers.padding.get_same_padding
    for values in itertools.product(range(1, 70), (1, 2, 3, 5, 7), (1, 2, 3, 4), (1, 2, 3)):
        assert same_padding(*values) == original(*values)


def test_timms_own_comes_back():
    original = timm.layers.padding.get_same_padding
    with whole_numbers():
        assert timm.layers.padding.get_same_padding is same_padding
    assert timm.layers.padding.get_same_padding is original
