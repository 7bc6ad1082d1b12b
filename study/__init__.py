"""Whole federations on one machine: the demonstration, its synthetic data, and public starts."""
