"""Meetings annotated with the NITE XML toolkit: AMI and ICSI."""
