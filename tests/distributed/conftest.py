"""A Ray cluster for a file of tests, on this machine."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One machine with room for two units, and this process connected to it as a user's would be.

    Others can be added, and taken away.
    """
    pytest.importorskip("ray", reason="ray is not installed: pip install 'noprop[ray]'")
    from ray.cluster_utils import Cluster

    from noprop.distributed.ray_cluster import connected

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        with connected(made.address, 2):
            yield made
    finally:
        made.shutdown()
