# `make` lists what there is. PYTHON, KIND (auto, cpu, cuda), PYTEST_ARGS and DEMO_ARGS can be given, as in
# make test PYTEST_ARGS="-k boxes"
PYTHON ?= python3
KIND ?= auto
PYTEST_ARGS ?=
DEMO_ARGS ?=
WORKERS ?= 2
VENV := .venv/bin

# Nothing here needs the network once set up, and two test workers on a small machine want two threads, not eight.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline
THREADS := OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false

.PHONY: help setup setup-vllm ready demo ablations test test-all test-vllm gpu-check lint format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make or repair .venv and say what it holds (a few minutes the first time)
	@$(PYTHON) tools/setup_env.py --kind $(KIND)

setup-vllm:  ## the same with vLLM: rollouts and inference at speed (2 GB more on a machine without CUDA)
	@$(PYTHON) tools/setup_env.py --kind $(KIND) --with-vllm

ready:
	@$(PYTHON) tools/setup_env.py --kind $(KIND) --quiet

demo: ready  ## the whole pipeline in miniature: data, SFT, GRPO, masks, scores
	@$(OFFLINE) $(VENV)/python -m demo $(DEMO_ARGS)

ablations: ready  ## what each reward term, SFT and the chain of thought are worth (about an hour)
	@$(OFFLINE) $(VENV)/python -m demo.ablations $(DEMO_ARGS)

PYTEST := $(OFFLINE) $(THREADS) $(VENV)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: ready  ## run the fast tests, which cover each part (6 minutes on two cores)
	@$(PYTEST) -m "not slow and not vllm and not gpu" $(PYTEST_ARGS)

test-all: ready  ## the same with whole runs of real commands and more random examples
	@$(PYTEST) -m "not vllm and not gpu" --hypothesis-profile thorough $(PYTEST_ARGS)

test-vllm: ready  ## run the tests against vLLM itself (after `make setup-vllm`; without it they skip)
	@$(OFFLINE) $(THREADS) $(VENV)/python -m pytest -m vllm tests/with_vllm $(PYTEST_ARGS)

gpu-check: ready  ## one real step of all that only a GPU runs: seconds, tokens/s, memory (at most 8 minutes)
	@$(OFFLINE) $(VENV)/python -m pytest -m gpu tests/gpu --gpu-json gpu_check.json $(PYTEST_ARGS)

lint: ready  ## check style, formatting and types
	@$(VENV)/ruff check . && $(VENV)/ruff format --check . && $(VENV)/mypy

format: ready  ## rewrite the code in the style that `make lint` wants
	@$(VENV)/ruff check --fix . && $(VENV)/ruff format .

bench: ready  ## measure speed and memory, write benchmarks/README.md (twenty quiet minutes)
	@$(OFFLINE) $(VENV)/python -m benchmarks

clean:  ## remove what runs left behind; .venv stays
	@rm -rf build dist *.egg-info gpu_check.json demo_out ablations_out .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
