"""A Ray cluster for the tests of this folder, and the runs that theirs are compared with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from noprop.config import RunConfig, replace
from ray_runs import SELDOM, trained


@pytest.hookimpl(tryfirst=True)  # before -m takes tests away
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that starts a cluster as slow."""
    for item in items:
        if isinstance(item, pytest.Function) and "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


# A machine that does not answer is given up after about two seconds.
CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """One machine with room for two units, and this process connected to it as a user's would be.

    A test can add others, and must take them away.
    """
    pytest.importorskip("ray", reason="ray is not installed: pip install 'noprop[ray]'")
    from ray.cluster_utils import Cluster

    from noprop.run.ray_cluster import connected

    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": CHECKS}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        with connected(made.address, 2):
            yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Callable[[RunConfig], Path]:
    """Runs trained by this process alone, each once and with one checkpoint at its end."""
    made: list[tuple[RunConfig, Path]] = []

    def run(config: RunConfig) -> Path:
        config = replace(config, SELDOM)
        for there, folder in made:
            if there == config:
                return folder
        made.append((config, trained(tmp_path_factory.mktemp("whole") / "r", config)))
        return made[-1][1]

    return run
