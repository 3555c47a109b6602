"""The command line of invprob: the only package that reads options and prints."""
