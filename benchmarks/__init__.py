"""What the documents claim about speed, bytes and memory, measured again: one module a subject, one row a target."""
