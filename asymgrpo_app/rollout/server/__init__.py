"""Sampling on vLLM servers: safe start of a server, and the engine that samples from one or several of them."""
