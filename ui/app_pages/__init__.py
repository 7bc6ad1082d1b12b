"""The pages: each arranges figures that other modules computed, and decides nothing."""
