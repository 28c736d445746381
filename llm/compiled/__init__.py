"""The compiled engine of small models on a CPU: blocks of Qwen2 and Qwen3 for training and for sampling. Needs Numba.

Everything is float32 products and sums as in torch, in an order of its own; tests hold it to torch's float64.
"""
