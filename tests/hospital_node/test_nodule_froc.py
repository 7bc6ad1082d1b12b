"""Nodules found and missed, counted by hand; the curve; connected parts and where they lie in the world."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from hospital_node.cohort import Nodule
from hospital_node.froc import CPM_RATES, Finding, ReadScan, findings, froc


def nodule(x, diameter=10.0):
    return Nodule(x, 0.0, 0.0, diameter)


def found(x, score):
    return Finding(x, 0.0, 0.0, score)


def scan(nodules=(), points=()):
    return ReadScan(tuple(found(*one) for one in points), tuple(nodule(x) for x in nodules))


def test_a_finding_within_the_radius_is_a_hit_and_one_beyond_it_is_false():
    within, beyond = froc([scan([0], [(5.0, 0.9)])]), froc([scan([0], [(5.001, 0.9)])])
    assert (within.sensitivity, within.false_positives) == ((1.0,), (0.0,))
    assert (beyond.sensitivity, beyond.false_positives) == ((0.0,), (1.0,))


def test_further_findings_at_a_found_nodule_count_neither_way():
    curve = froc([scan([0], [(0.0, 0.5), (1.0, 0.9), (-2.0, 0.7)])])
    assert curve.thresholds == (0.9,)
    assert (curve.sensitivity, curve.false_positives) == ((1.0,), (0.0,))


def test_one_finding_may_stand_for_two_nodules_that_it_lies_in():
    curve = froc([scan([0, 6], [(3.0, 0.8)])])
    assert (curve.sensitivity, curve.false_positives) == ((1.0,), (0.0,))


def test_a_curve_by_hand():
    """Two scans, three nodules: hits at 0.9 and 0.4, one nodule missed, false positives at 0.8, 0.6 and 0.3."""
    curve = froc([scan([0, 100], [(0.0, 0.9), (50.0, 0.8), (60.0, 0.3)]), scan([0], [(50.0, 0.6), (2.0, 0.4)])])
    assert curve.thresholds == (0.9, 0.8, 0.6, 0.4, 0.3)
    assert curve.false_positives == (0.0, 0.5, 1.0, 1.0, 1.5)
    assert curve.sensitivity == pytest.approx((1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3))
    assert (curve.scans, curve.nodules) == (2, 3)
    assert [curve.at(rate) for rate in (0.125, 0.5, 1.25, 1.5, 8)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3])


def test_between_two_thresholds_the_curve_is_a_line():
    """One scan: a hit, then one false positive and one hit of the same score."""
    curve = froc([scan([0, 100], [(0.0, 0.9), (50.0, 0.5), (100.0, 0.5)])])
    assert curve.false_positives == (0.0, 1.0)
    assert curve.sensitivity == (0.5, 1.0)
    assert [curve.at(rate) for rate in (0.125, 0.25, 0.5, 1)] == pytest.approx([0.5625, 0.625, 0.75, 1.0])
    assert curve.cpm == pytest.approx((0.5625 + 0.625 + 0.75 + 4 * 1.0) / 7)


def test_the_cpm_of_a_perfect_and_of_a_silent_reader():
    assert froc([scan([0], [(0.0, 1.0)])]).cpm == 1.0
    assert froc([scan([0])]).cpm == 0.0
    assert CPM_RATES == (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def test_scans_without_a_nodule_count_for_the_false_positives():
    alone = froc([scan([0], [(0.0, 0.9), (50.0, 0.95)])])
    among = froc([scan([0], [(0.0, 0.9), (50.0, 0.95)]), *[scan()] * 7])
    assert alone.at(0.125) < 0.2
    assert among.at(0.125) == 1.0


def test_without_any_nodule_there_is_no_sensitivity():
    for scans in ([], [scan((), [(0.0, 0.5)])]):
        with pytest.raises(ValueError, match="at least one nodule"):
            froc(scans)


points = st.lists(st.tuples(st.floats(-60, 60), st.floats(0, 1)), max_size=8)


@given(st.lists(st.tuples(st.lists(st.floats(-50, 50), min_size=1, max_size=3), points), min_size=1, max_size=4))
def test_the_curve_rises_and_stays_within_its_bounds(scans):
    curve = froc([scan(nodules, found_) for nodules, found_ in scans])
    for values in (curve.false_positives, curve.sensitivity):
        assert list(values) == sorted(values)
    assert all(0 <= value <= 1 for value in curve.sensitivity)
    assert 0 <= curve.cpm <= 1
    assert sum(len(found_) for _, found_ in scans) >= round((curve.false_positives or (0,))[-1] * len(scans))


@given(points)
def test_another_false_positive_never_raises_the_cpm(some):
    with_one = froc([scan([0], [*some, (1000.0, 0.5)])]).cpm
    assert with_one <= froc([scan([0], some)]).cpm + 1e-12


def volume(direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    """Two blobs, one faint; a third touches the first by a corner only."""
    values = np.zeros((12, 16, 20), np.float32)
    values[2:4, 3:5, 6:8] = 0.9
    values[4, 5, 8] = 0.6
    values[9, 12, 15] = 0.3
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetOrigin((-10.0, 20.0, -30.0))
    image.SetDirection(direction)
    return image


def test_parts_that_touch_by_a_corner_are_one_and_the_likeliest_comes_first():
    one, other = findings(volume(), 0.25)
    assert (one.score, other.score) == pytest.approx((0.9, 0.3))
    assert one.volume_mm3 == pytest.approx(9.0)
    assert len(findings(volume(), 0.5)) == 1
    assert [part.volume_mm3 for part in findings(volume(), 0.25, least_mm3=2.0)] == pytest.approx([9.0])
    assert findings(volume(), 0.95) == []


def test_a_part_lies_at_its_centre_of_mass_in_the_world():
    *_, faint = findings(volume(), 0.25)
    assert (faint.x_mm, faint.y_mm, faint.z_mm) == pytest.approx((-10 + 15 * 0.5, 20 + 12, -30 + 9 * 2))
    turned = (0, 1, 0, 1, 0, 0, 0, 0, -1)
    *_, faint = findings(volume(turned), 0.25)
    assert (faint.x_mm, faint.y_mm, faint.z_mm) == pytest.approx((-10 + 12, 20 + 15 * 0.5, -30 - 9 * 2))
    mass = 8 * 0.9 + 0.6
    first, *_ = findings(volume(), 0.25)
    assert first.x_mm == pytest.approx(-10 + 0.5 * (8 * 0.9 * 6.5 + 0.6 * 8) / mass)
