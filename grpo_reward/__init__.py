"""The reward of keyframe segmentation, and the ReVOS task that trains on it; `verl` finds both by name."""
