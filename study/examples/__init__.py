"""Tasks beside the product's own: how to bring a learning problem of yours into a study."""
