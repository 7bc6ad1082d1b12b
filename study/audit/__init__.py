"""Attacks on the node's own training: whether what leaves shows a patient more clearly than the reported epsilon allows."""
