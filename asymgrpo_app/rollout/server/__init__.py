"""Sampling on vLLM servers: how one is started safely, and how a run samples from one or several of them."""
