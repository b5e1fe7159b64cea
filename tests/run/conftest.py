"""A Ray cluster for a file of tests, on this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from noprop.config import RunConfig
from ray_runs import trained


@pytest.hookimpl(tryfirst=True)  # before -m takes tests away
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that starts a cluster as slow."""
    for item in items:
        if isinstance(item, pytest.Function) and "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One machine with room for two units, and this process connected to it as a user's would be.

    Others can be added, and taken away.
    """
    pytest.importorskip("ray", reason="ray is not installed: pip install 'noprop[ray]'")
    from ray.cluster_utils import Cluster

    from noprop.run.ray_cluster import connected

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        with connected(made.address, 2):
            yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Callable[[RunConfig], Path]:
    """Runs trained by this process alone, each once."""
    made: list[tuple[RunConfig, Path]] = []

    def run(config: RunConfig) -> Path:
        for there, folder in made:
            if there == config:
                return folder
        made.append((config, trained(tmp_path_factory.mktemp("whole") / "r", config)))
        return made[-1][1]

    return run
