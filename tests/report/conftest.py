"""Made-up sweeps, written once for all tests of the report."""

import pytest

from regtune.report.page import write_report
from report.synthetic import write_sweep

RESAMPLES = 600


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """Three N, five seeds, two sets; N = 16 helps a lot; two controls at N = 16."""
    folder = tmp_path_factory.mktemp("sweeps") / "made-up"
    return write_sweep(folder, effects={16: 0.2}, controls=("random", "frozen"))


@pytest.fixture(scope="session")
def report(sweep, tmp_path_factory):
    """The page of that sweep."""
    return write_report(sweep, output=tmp_path_factory.mktemp("report"), resamples=RESAMPLES)
