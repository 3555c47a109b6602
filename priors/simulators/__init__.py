"""Simulators that draw training data for the shipped priors."""
