"""Veason-R1: video reasoning segmentation. What is packaged, and what it needs (read from requirements.txt)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# `demo`, `tests`, `tools` and `benchmarks` are not installed: they run from a checkout.
PACKAGES = ("veason", "verl", "grpo_reward", "training_data_construction", "inference", "eval")
APART = ("vllm",)  # an extra: a machine without CUDA has no use for the CUDA build


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and line[0] not in "#-"]


def is_apart(pin):
    return pin.partition("==")[0] in APART


setup(
    name="veason-r1",
    version="0.1.0",
    description="Video reasoning segmentation: think, pick a keyframe, box the target, track its mask",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
    package_data={"": ["*.txt", "*.yaml", "*.j2"]},
    entry_points={
        "verl.datasets": ["video_seg_keyframe_sft_base_mod = grpo_reward.task:build"],
        "verl.rewards": ["video_match_keyframe_sft_sam_mod = grpo_reward.reward_score:build"],
    },
    install_requires=[pin for pin in pins("requirements.txt") if not is_apart(pin)],
    extras_require={
        "vllm": [pin for pin in pins("requirements.txt") if is_apart(pin)],
        "sam2": ["sam2==1.1.0"],
        "dev": pins("requirements-dev.txt"),
    },
)
