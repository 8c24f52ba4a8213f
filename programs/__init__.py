"""LIPs on the sdk alone: the examples, and the programs behind the OpenAI-compatible endpoints."""
