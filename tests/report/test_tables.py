"""Numbers in a terminal: nothing is rounded to a certainty, or to no time at all."""

import math

import pytest

from noprop.report.tables import duration, mean_text


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (97.314, 0.021, "97.31 ± 0.02"),
        (97.314, 0.005, "97.31 ± 0.01"),
        (97.314, 0.0049, "97.31 ± <0.01"),
        (97.314, 0.0, "97.31"),  # runs without spread: no ± 0.00
        (97.314, None, "97.31"),
        (97.314, math.nan, "97.31"),
        (None, None, "–"),
    ],
)
def test_a_small_error_is_never_rounded_to_a_certainty(mean, error, text):
    assert mean_text(mean, error) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.4, "<1 s"),
        (0.6, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (185.0, "3 min 5 s"),
        (7800.0, "2 h 10 min"),
    ],
)
def test_times_are_rounded_to_what_a_person_reads(seconds, text):
    assert duration(seconds) == text
