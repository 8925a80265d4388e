"""Saving and restoring the training state, and moving weights from one model to another."""
