"""The embedded default: a synthetic world, a teacher and a tiny policy, so that the whole recipe runs without a GPU.

`recipe` runs the stages in order; start reading there. Of the world, read `scene` first (a scene of moving shapes),
then `sampling` (draws one), `render` (its pixels and masks), `facts` and `expressions` (the questions whose answers are
beyond doubt) and `writer` (the files). `teacher` serves chains of thought about a world, `policy` builds the tiny
Qwen2.5-VL, and `pretrain` trained the one in ``base_policy``. Nothing of the product imports this package, and it is
not installed: run it from the repository root.
"""
