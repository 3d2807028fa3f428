"""Connectionist temporal classification on the output of an encoder or an adapter."""
