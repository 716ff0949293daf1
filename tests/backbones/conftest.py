from __future__ import annotations

import torch


def pytest_configure() -> None:
    # The models are tiny: threads cost more than they give.
    torch.set_num_threads(1)
