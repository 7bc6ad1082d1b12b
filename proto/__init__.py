"""Wire format and study plan: what every party must agree on."""
