"""From ReVOS to training data: sampling, chain-of-thought from a strong VLM, LLaMA-Factory data sets."""
