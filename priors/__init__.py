"""Priors p(x): diffusion processes, denoisers, decoders and shipped weights.

A module of this folder that defines a `Prior`, or a folder below `priors/weights`, is a prior and
goes by its name. Importing the package loads no torch.
"""
