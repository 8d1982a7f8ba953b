"""One real step of everything that only a GPU runs: ``make gpu-check``. Nothing is downloaded.

Every check runs at two sizes, tiny and with 1.05 billion random parameters. On a CPU, ``pytest tests/gpu --gpu-device
cpu`` takes them tiny over gloo.
"""

import actor_checks
import engine_checks
import pytest
import sam2_checks

pytestmark = pytest.mark.gpu

ON_ALL = (actor_checks.step, actor_checks.offload, actor_checks.lora, actor_checks.checkpoints, engine_checks.worker)
ON_ONE = (
    actor_checks.build,
    actor_checks.packed,
    actor_checks.recompute,
    actor_checks.exported,
    engine_checks.hf,
    engine_checks.vllm,
    engine_checks.answers,
)


@pytest.mark.parametrize("check", ON_ONE, ids=lambda check: check.__name__)
def test_on_one_device(apart, check):
    apart(check)


@pytest.mark.parametrize("check", ON_ALL, ids=lambda check: check.__name__)
def test_on_all_devices(apart, check):
    apart(check, on_all=True)


def test_sam2(apart):
    apart(sam2_checks.sam2, needs_policy=False)
