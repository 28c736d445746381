"""LLM world (part of entropy-theory): a GRPO loop on Qwen models through `transformers`, and a tiny model."""
