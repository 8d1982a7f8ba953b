"""The embedded default: a synthetic world, a teacher and a tiny policy, on which the whole road runs without a GPU.

Read `scene` first (what a scene of moving shapes is), then `sampling` (draws one), `render` (its pixels and masks),
`facts` and `expressions` (what can be asked of it without doubt) and `writer` (the files). `teacher` serves chains of
thought about a world, `policy` builds the tiny Qwen2.5-VL, `pretrain` trained the one in ``base_policy``, `road` runs
the stages. Nothing of the product imports this package, and it is not installed: run it from the repository root.
"""
