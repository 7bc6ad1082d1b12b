"""Studies: grids of whole federations in one process each, with baselines on the same splits."""
