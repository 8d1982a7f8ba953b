"""One real step of everything that only a GPU runs: ``python -m verl.gpu_check``.

No download, no data set, no checkpoint: a random Qwen2.5-VL is made on the device, saved, and taken through the
classes that training uses. `plan` lists the checks, `checks` and `rollouts` say what each must show, `runner` gives
each processes of its own.
"""
