"""The signed privacy report of a hospital and its renderings: model, facts, pages, registry entry, annexes, and their check."""
