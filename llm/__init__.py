"""LLM world: a GRPO loop on Qwen2 models through `transformers`, and a tiny model to run it on."""
