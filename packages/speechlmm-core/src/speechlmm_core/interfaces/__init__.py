"""Torch-free interfaces of the component kinds; the modules' base classes are in `interfaces.modules`."""
