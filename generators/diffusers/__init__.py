"""Image generators made of diffusers' pipelines."""
