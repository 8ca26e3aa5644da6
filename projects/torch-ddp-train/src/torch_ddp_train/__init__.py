"""Distributed PyTorch training on Ray Train."""
