"""Fixtures that several test files share, and which tests need a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from browser import CHROMIUM


@pytest.fixture
def double() -> Iterator[None]:
    """Compute in float64 with seeded draws; use it for a file by `pytest.mark.usefixtures`."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that are marked `browser` where there is no Chromium."""
    if CHROMIUM is None:
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason="Chromium is not installed"))
