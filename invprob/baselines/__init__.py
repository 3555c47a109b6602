"""Training-free samplers, one file each; the folder is the registry."""
