"""Shared by all tests: eight simulated devices, a cache of their own, and where real data may be found."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before JAX starts: tests of sharding need several devices, and nothing may depend on what a user has cached. The
# workers of pytest-xdist have both from the process that started them, so that they compile nothing twice.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    _CACHE = tempfile.TemporaryDirectory(prefix="rcmnet-test-cache-")
    os.environ["RCMNET_CACHE"] = _CACHE.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves slow tests out of the coverage: they trace and compile networks, which counting lines slows by a third."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by RCMNET_TEST_DATA; tests that ask for it are skipped without."""
    folder = os.environ.get("RCMNET_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RCMNET_TEST_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="module")
def quickly_compiled() -> Iterator[None]:
    """Has programs compiled in half the time, to slower code: for what hangs on no speed and on no last bit.

    A module has such programs to itself: what is held in memory is forgotten before and after, as they round otherwise.
    """
    import jax

    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
