"""Named runs as YAML files; ``megatron-music recipes`` lists them."""
